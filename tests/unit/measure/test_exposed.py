"""What counts as exposed, and how ranks become one number."""

import pytest

from paralab.measure.exposed import uncovered
from paralab.measure.split import Split
from paralab.measure.straggler import Lag, Straggler, exposed_share, furthest_behind, straggler


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


def test_the_parts_of_a_step_add_up_to_it() -> None:
    on_cpu = Split.of(10.0, {"dp": 1.0, "pp": 3.0}, data_s=2.0)
    assert on_cpu.parts_s() == {"compute": 4.0, "data": 2.0, "comm_dp": 1.0, "comm_pp": 3.0}
    # of the wait for other stages, what the schedule makes inevitable is a part of its own
    bubble = {"compute": 4.0, "data": 2.0, "bubble": 2.0, "comm_dp": 1.0, "comm_pp": 1.0}
    assert on_cpu.parts_s(bubble_share=0.2) == pytest.approx(bubble)
    assert on_cpu.parts_s(bubble_share=0.5)["bubble"] == 3.0
    # a GPU that had nothing to do for 3 s lacked a batch for at most so long, and else orders from its host
    on_gpu = Split.of(10.0, {"": 1.0}, data_s=2.0, idle_s=3.0)
    assert on_gpu.parts_s() == {"compute": 6.0, "data": 2.0, "host": 1.0, "comm": 1.0}
    assert Split.of(10.0, {}, data_s=5.0, idle_s=3.0).parts_s() == {"compute": 7.0, "data": 3.0, "host": 0.0}
    assert sum(Split.sum([on_cpu, on_gpu, on_gpu]).parts_s().values()) == 30.0
    assert Split.sum([on_gpu, on_cpu, on_gpu]).host_s == 2.0 and Split.sum([on_cpu]).host_s is None


def test_the_step_in_which_a_rank_is_furthest_behind_and_in_what() -> None:
    even = [Split(1.0, 0.1)] * 3
    held_up = [Split(2.0, 1.0), Split(3.0, 2.0), Split(4.0, 1.0)]
    slow = [Split(2.0, 0.1), Split(3.0, 0.1, data_s=1.9), Split(4.0, 2.8)]
    step, behind_s, cause = furthest_behind([held_up, held_up, slow], 2)
    assert (step, cause) == (1, "data") and behind_s == pytest.approx(2.9 - 1.0)
    step, behind_s, cause = furthest_behind([slow[:1], held_up[:1]], 0)
    assert (step, cause) == (0, "compute") and behind_s == pytest.approx(0.9)
    assert furthest_behind([even, even], 1).cause == "communication"  # none holds up the other
    host = [Split(3.0, 0.0, 0.0, 2.0)]
    assert furthest_behind([[Split(3.0, 2.0, 0.0, 0.0)], host], 1) == Lag(0, 2.0, "host")
