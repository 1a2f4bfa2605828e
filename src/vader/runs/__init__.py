"""A run's folder: its checkpoints and its metrics, written and read."""
