"""Numbers on the axes of charts, each quantity in one unit."""

MIB = 2**20  # bytes


def mib(size: float) -> str:
    """Return MiB as text, to three digits."""
    return "0" if not size else f"{size:,.0f} MiB" if abs(size) >= 100 else f"{size:.3g} MiB"


def milliseconds(time_s: float) -> str:
    """Return seconds as text in ms, to three digits."""
    time_ms = 1e3 * time_s
    return "0" if not time_ms else f"{time_ms:,.0f} ms" if abs(time_ms) >= 100 else f"{time_ms:.3g} ms"


def between_ms(interval_s: tuple[float, float]) -> str:
    """Return an interval of seconds as text in ms: 807 to 2,779 ms."""
    low, high = map(milliseconds, interval_s)
    return f"{low.removesuffix(' ms')} to {high.removesuffix(' ms')} ms"


def plain(number: float) -> str:
    """Return a number, to three digits or with separators."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
