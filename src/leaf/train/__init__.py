"""Train: one loop for the stages rl, sft and align."""
