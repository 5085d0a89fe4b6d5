"""One rule for the unit of every time and size that is printed."""

import pytest

from paralab.console.quantities import decimals, interval_text, size_text, size_unit, time_text, times_on


@pytest.mark.parametrize(
    ("time_s", "text"),
    [(0, "0"), (4.2e-7, "0.42 µs"), (0.00042, "420 µs"), (0.0123, "12.3 ms"), (0.9994, "999 ms"), (0.9996, "1 s"),
     (1.254, "1.25 s"), (1234.5, "1,234 s"), (-0.02, "-20 ms")],
)  # fmt: skip
def test_a_time_is_in_the_largest_unit_that_it_reaches(time_s: float, text: str) -> None:
    assert time_text(time_s) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (12, "12 B"), (2048, "2 KiB"), (1023 << 10, "1,023 KiB"), (43.5 * 2**20, "43.5 MiB"),
     (1.5 * 2**30, "1.5 GiB")],
)  # fmt: skip
def test_a_size_is_in_the_largest_unit_that_it_reaches(size: float, text: str) -> None:
    assert size_text(size) == text


def test_what_stands_together_has_one_unit() -> None:
    assert interval_text((0.807, 2.779)) == "0.807 to 2.78 s" and interval_text((0.0182, 0.0201)) == "18.2 to 20.1 ms"
    assert interval_text((-0.02, 0.001)) == "-20 to 1 ms", "the larger of the two decides, whatever its sign"
    assert list(map(times_on(1.5), (0, 0.5, 1.5))) == ["0", "0.5 s", "1.5 s"]
    assert list(map(times_on(0.3), (0, 0.01, 0.3))) == ["0", "10 ms", "300 ms"]


def test_what_is_more_than_nothing_is_not_shown_as_nothing() -> None:
    assert [decimals(x, 1) for x in (0, 0.04, 0.06, 41.52, 1234.5)] == ["0.0", "<0.1", "0.1", "41.5", "1,234.5"]
    assert decimals(0.004, 2) == "<0.01" and decimals(0.3, 0) == "<1"
    assert size_unit([13_000.0]) == (1 << 10, "KiB") and size_unit([0.0]) == (1 << 20, "MiB")
