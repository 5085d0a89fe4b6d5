"""Sweeps: every combination of strategies, models, sizes and process counts, several times each (`paralab bench`)."""
