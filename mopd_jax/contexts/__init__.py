"""What a teacher reads: which peers, in which words."""
