"""Responses sampled from a model, and the files that keep them."""
