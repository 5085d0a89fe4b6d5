"""What a command prints and writes: streams that outlive their readers, progress on the screen, files written whole."""
