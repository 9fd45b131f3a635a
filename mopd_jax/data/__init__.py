"""Problems: where they come from, in which order, and how data sets are prepared."""
