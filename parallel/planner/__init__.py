"""Predict what a layout needs before running it."""
