"""Pages that open offline: one style, one script, charts as inline SVG, nothing loaded from the network."""
