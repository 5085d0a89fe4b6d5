"""Pages of docs/ that are made from the code, such as `python -m paralab.benchmarks.documents options`."""
