"""A training run: options and presets, the loop, evaluation on held-out data, output, and the cost of interruptions."""
