"""Problems for training and evaluation: their sources, their order, and prepared data sets."""
