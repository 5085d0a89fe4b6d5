"""The commands that do not measure, one file each, named like the command; those that do are in `benchmarks`."""
