"""One factor from a user's own rows."""

import pytest

from paralab.errors import ConfigError
from paralab.planning.factor import factor


def test_a_constant_error_is_corrected_whole() -> None:
    found = factor([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found.value == pytest.approx(2.0) and found.before == pytest.approx(0.5)
    assert found.after == pytest.approx(0.0, abs=1e-12) and "3 measured rows" in found.sentence


def test_each_row_is_judged_by_the_others() -> None:
    found = factor([1.0, 1.0, 8.0], [1.0, 1.0, 1.0])
    assert found.value == pytest.approx(2.0)
    # the others say 8 ** (1/2), 8 ** (1/2) and 1
    assert found.after == pytest.approx((2 * (8**0.5 - 1) + (1 - 1 / 8)) / 3)


@pytest.mark.parametrize("n", [0, 2])
def test_fewer_than_three_rows_are_refused(n: int) -> None:
    with pytest.raises(ConfigError, match=f"has {n} rows"):
        factor([1.0] * n, [1.0] * n)
