"""What a run leaves behind: one row in a CSV file, a log of its steps for each rank, and where it ran."""
