"""What memory is counted as: states of the model, and what a step takes beside them. Imports no torch."""

STATE_CATEGORIES = ("parameters", "gradients", "optimizer")
MEMORY_CATEGORIES = (*STATE_CATEGORIES, "activations", "buffers", "other")
