"""Measuring a run: communication, memory, step times, utilisation, the device's peak and the environment."""
