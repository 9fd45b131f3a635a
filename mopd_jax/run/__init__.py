"""One run: its record, how it opens, its folder, checkpoints, log and warnings."""
