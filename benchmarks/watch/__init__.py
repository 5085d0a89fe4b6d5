"""What a training or a sweep is doing now, from the files that it writes: `paralab watch`."""
