"""Times and sizes for people: three digits, in the largest unit that they reach. One rule for all that is printed."""

from collections.abc import Callable, Iterable, Sequence

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
TIMES = (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0))
SIZES = (("B", 1.0), ("KiB", 2.0**10), ("MiB", 2.0**20), ("GiB", 2.0**30), ("TiB", 2.0**40))

Units = Sequence[tuple[str, float]]


def time_text(time_s: float, digits: int = 3) -> str:
    """Return seconds as text: 62.7 ms, and 1.25 s from one second on."""
    return _scaled(time_s, TIMES, digits)


def size_text(size_bytes: float) -> str:
    """Return bytes as text: 512 B, 1.5 KiB, 41.5 MiB."""
    return _scaled(size_bytes, SIZES, 3)


def interval_text(interval_s: tuple[float, float]) -> str:
    """Return an interval of seconds in the unit of its end, which is said once: 0.807 to 2.78 s."""
    low, high = map(times_on(max(map(abs, interval_s))), interval_s)
    return f"{low.rpartition(' ')[0] or low} to {high}"


def times_on(largest_s: float) -> Callable[[float], str]:
    """Return what writes the seconds of one axis, all of them in the unit of the largest."""
    unit = _unit_of(largest_s, TIMES[1:], 3)
    return lambda time_s: _in(time_s, unit, 3) if time_s else "0"


def size_unit(sizes: Iterable[float]) -> tuple[int, str]:
    """Return the bytes of the unit that suits the largest of these sizes, and its name."""
    largest = max(sizes, default=0)
    if largest >= 1000 * MIB:
        return GIB, "GiB"
    return (KIB, "KiB") if 0 < largest < MIB else (MIB, "MiB")


def decimals(number: float, places: int) -> str:
    """Return a number of a column whose head has the unit; what is more than nothing is not shown as 0.0."""
    shown = f"{number:,.{places}f}"
    return f"<{10**-places:g}" if 0 < number and float(shown.replace(",", "")) == 0 else shown


def _scaled(number: float, units: Units, digits: int) -> str:
    return _in(number, _unit_of(number, units, digits), digits) if number else "0"


def _unit_of(number: float, units: Units, digits: int) -> tuple[str, float]:
    """Return the largest unit that a number reaches once it is rounded: 999.9 ms are a second."""
    reached = (unit for unit in reversed(units) if float(f"{abs(number) / unit[1]:.{digits}g}") >= 1)
    return next(reached, units[0])


def _in(number: float, unit: tuple[str, float], digits: int) -> str:
    name, size = unit
    short = f"{number / size:.{digits}g}"
    return f"{number / size:,.0f} {name}" if abs(float(short)) >= 1000 else f"{short} {name}"
