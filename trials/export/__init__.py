"""Export: a student as a checkpoint that other programs load."""
