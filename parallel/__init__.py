"""Parallel training strategies, the engines that run them, and the tools that prove they agree."""

__version__ = "0.1.0"
