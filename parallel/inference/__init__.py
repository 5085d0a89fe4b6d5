"""A trained model out of a checkpoint, ready to be used, and whether its samples are like the data."""
