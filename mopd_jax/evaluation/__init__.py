"""Held-out evaluation: responses, solve rates, intervals, tables."""
