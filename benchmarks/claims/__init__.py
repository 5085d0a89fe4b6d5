"""Claims on speed and memory that are often taught, what is measured for each, and the verdicts."""
