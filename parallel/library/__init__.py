"""What `import paralab` gives: a module of one's own under any layout, and the proof that it computes the same."""
