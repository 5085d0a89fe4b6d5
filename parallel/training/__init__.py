"""A training run: its options and presets, the loop, evaluation on held-out data, what it shows and what stops cost."""
