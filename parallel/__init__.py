"""Parallel training strategies, the engines that run them, and the tools that prove they agree."""

from parallel import axes  # which puts the built-in axes into the list that layouts are read by

__all__ = ["axes"]
__version__ = "0.2.0"
