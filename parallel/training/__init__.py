"""What `paralab train` is made of: the loop, evaluation on held-out data, and what it shows."""
