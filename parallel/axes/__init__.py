"""The ways of splitting: what each does to modules, gradients and optimizer, what it sends and holds."""
