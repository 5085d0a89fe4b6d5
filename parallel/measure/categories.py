"""The categories of memory: states of the model, and what a step needs besides them. Imports no torch."""

STATE_CATEGORIES = ("parameters", "gradients", "optimizer")
MEMORY_CATEGORIES = (*STATE_CATEGORIES, "activations", "buffers", "other")
