"""Curating texts: what they hold, which parts repeat others, and tokenizers trained on them."""
