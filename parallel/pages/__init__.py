"""Pages that open offline: one style, charts as inline SVG, no script, nothing loaded from the network."""
