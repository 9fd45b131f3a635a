"""Models: decoders, their weights and tokenizers, and their layout over devices."""
