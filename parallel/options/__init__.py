"""The options of a run: declared once, read from flags and files, checked before anything heavy is loaded."""
