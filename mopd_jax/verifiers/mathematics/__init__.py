"""Whether two mathematical answers are equal. Start at `rules.py`."""
