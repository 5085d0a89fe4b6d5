"""What measures, and what reads measurements: one case, sweeps, baselines, faults, comparisons, reports and pages."""
