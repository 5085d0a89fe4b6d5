"""What sending less costs in convergence, and over which links it pays: `python -m paralab.benchmarks.sends_less`."""
