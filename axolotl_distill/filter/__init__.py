"""From trajectories to a dataset: steps that keep or drop rows, and what is written of both."""
