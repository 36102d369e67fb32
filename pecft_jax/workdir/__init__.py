"""Work directories: logs, checkpoints, positions, branches."""
