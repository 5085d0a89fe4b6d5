"""What counts as exposed, and how ranks become one number."""

import pytest

from parallel.measure.exposed import Split, exposed_share, straggler_ratio, uncovered


def test_only_what_nothing_covers_is_exposed() -> None:
    assert uncovered([(0.0, 4.0)], []) == 4.0
    assert uncovered([(0.0, 4.0)], [(1.0, 2.0), (1.5, 3.0)]) == 2.0  # kernels of two streams overlap
    assert uncovered([(0.0, 2.0), (1.0, 4.0)], [(3.0, 9.0)]) == 3.0
    assert uncovered([(2.0, 3.0)], [(0.0, 1.0), (2.0, 5.0)]) == 0.0
    assert uncovered([], [(0.0, 1.0)]) == 0.0


def test_ranks_that_wait_for_a_slow_one() -> None:
    ranks = [Split(10.0, 0.0), Split(10.0, 5.0), Split(10.0, 5.0), Split(10.0, 6.0)]
    assert exposed_share(ranks) == pytest.approx(0.4)
    assert straggler_ratio(ranks) == pytest.approx(2.0)
    assert straggler_ratio([Split(10.0, 9.0)] * 3) == 1.0  # all wait for the network, none for another rank
