"""Held-out evaluation: responses, scores, intervals, tables."""
