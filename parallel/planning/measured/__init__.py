"""Predictions for a device that `paralab calibrate` has measured: the operations of a step, each as long as there."""
