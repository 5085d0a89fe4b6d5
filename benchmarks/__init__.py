"""Measuring and reading measurements: cases, sweeps, baselines, injected faults, comparisons, reports and pages."""
