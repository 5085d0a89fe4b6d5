"""Restoring a trained model from a checkpoint for use, and testing whether its samples match the data."""
