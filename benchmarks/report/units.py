"""Numbers on the axes of charts, each quantity in one unit."""

MIB = 2**20  # bytes


def mib(size: float) -> str:
    """Return MiB as text, to three digits."""
    return "0" if not size else f"{size:,.0f} MiB" if abs(size) >= 100 else f"{size:.3g} MiB"


def plain(number: float) -> str:
    """Return a number, to three digits or with separators."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
