"""Turns the source files of public data sets, or a user's own, into checked problems on disk.

`prepare.py` reads, checks and writes; `check.py` judges the gold answers of what was written;
`catalogue.py` has the data sets by name. Each source format has a module of its own;
docs/data.md describes the formats and what becomes of each row.
"""
