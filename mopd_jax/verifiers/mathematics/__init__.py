"""Whether two mathematical answers are equal; `rules.py` has the verifier and its rules."""
