"""What a teacher reads: which peers are chosen, and how they are rendered."""
