"""What counts as exposed, and how ranks become one number."""

import pytest

from paralab.measure.exposed import Split, Straggler, exposed_share, straggler, uncovered


def test_only_what_nothing_covers_is_exposed() -> None:
    assert uncovered([(0.0, 4.0)], []) == 4.0
    assert uncovered([(0.0, 4.0)], [(1.0, 2.0), (1.5, 3.0)]) == 2.0  # kernels of two streams overlap
    assert uncovered([(0.0, 2.0), (1.0, 4.0)], [(3.0, 9.0)]) == 3.0
    assert uncovered([(2.0, 3.0)], [(0.0, 1.0), (2.0, 5.0)]) == 0.0
    assert uncovered([], [(0.0, 1.0)]) == 0.0


def test_ranks_that_wait_for_a_slow_one() -> None:
    ranks = [Split(10.0, 0.0), Split(10.0, 5.0), Split(10.0, 5.0), Split(10.0, 6.0)]
    assert exposed_share(ranks) == pytest.approx(0.4)
    assert straggler(ranks) == Straggler(0, 2.0)  # 10 against 5, the median of 5, 5 and 4
    assert straggler([Split(10.0, 9.0)] * 3).ratio == 1.0  # all wait for the network, none for another rank


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("slow", [0, 1])
def test_a_rank_that_is_ten_times_as_slow_reads_ten(ranks: int, slow: int) -> None:
    splits = [Split(10.0, 0.0 if rank == slow else 9.0) for rank in range(ranks)]
    assert straggler(splits) == Straggler(slow, 10.0)


def test_others_that_only_wait_give_no_ratio() -> None:
    assert straggler([Split(10.0, 10.0), Split(10.0, 0.0)]) == Straggler(1, None)
