"""What will run (everything chosen and checked), and whether it fits."""
