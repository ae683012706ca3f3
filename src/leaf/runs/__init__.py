"""Keep a run: its directory, checkpoints, signals and processes."""
