"""Measurements and their evaluation: cases, sweeps, baselines, injected faults, comparisons and reports."""
