"""Export: writes a student as a checkpoint that other programs can load."""
