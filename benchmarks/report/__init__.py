"""Reading result files: which rows may be compared, statistics, verdicts, and the pages and pictures made of them."""
