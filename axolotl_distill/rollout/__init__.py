"""Text written while the student trains: prompts out of a step's batches, completions, and batches
out of these."""
