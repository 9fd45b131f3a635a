"""Rollouts: sampling them from a model, and their files."""
