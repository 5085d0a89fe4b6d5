"""Measurements: cases, sweeps, baselines, injected faults, scaling; what reads their results is in rooms of its own."""
