"""Source files of public data sets, or a user's own, turned into checked problems on disk.

`prepare.py` reads, checks and writes; `check.py` judges what was written; `catalogue.py` has
the names. One module a source format; docs/data.md has the formats and the policies.
"""
