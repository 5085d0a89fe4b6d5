"""What counts as exposed, and how ranks become one number."""

import itertools
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from paralab.measure import exposed, waits
from paralab.measure.exposed import ExposedCommunication, uncovered
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


def test_what_a_gpu_runs_is_told_by_the_names_of_kernels_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two names of NCCL's kernels, two streams at once, and an annotation, which is no kernel; idle is the rest."""
    on_gpu, on_host = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU

    def event(name: str, start_s: float, end_s: float, device: Any = on_gpu, user: bool = False) -> Any:
        span = SimpleNamespace(start=1e6 * start_s, end=1e6 * end_s)
        return SimpleNamespace(name=name, time_range=span, device_type=device, is_user_annotation=user)

    events = [
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 0.0, 3.0),
        event("gemm", 1.0, 2.0),
        event("gemm", 1.5, 2.5),
        event("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t", 4.0, 5.0),
        event("ncclDevKernel of the host", 6.0, 9.0, on_host),
        event("ncclDevKernel of an annotation", 6.0, 9.0, user=True),
    ]
    profile = SimpleNamespace(__enter__=lambda: None, __exit__=lambda *_: None, events=lambda: events)
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    kernels = exposed._Kernels()
    kernels.start()
    assert kernels.stop() == {"": pytest.approx(1.5 + 1.0)}
    assert kernels.idle_s(7.0) == pytest.approx(3.0) and kernels.idle_s(1.0) == 0.0


def test_waiting_for_data_is_that_of_one_step() -> None:
    def slow() -> Any:
        time.sleep(0.05)
        yield from itertools.count()

    seen, batches = ExposedCommunication(torch.device("cpu")), slow()
    for _ in range(2):
        with seen:
            seen.next(batches)
    first, second = seen.splits
    assert first.data_s > 0.04 > second.data_s


def test_what_other_threads_wait_for_costs_the_step_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was replaced to see it is there again."""
    wait, work = (lambda work: True), dist.Work()
    monkeypatch.setattr(dist.Work, "wait", wait)
    probe = waits.Waits({})
    probe.start()
    other = threading.Thread(target=lambda: work.wait())
    other.start()
    other.join()
    assert probe.seen == []
    work.wait()
    assert len(probe.seen) == 1 and probe.stop().keys() == {""}
    assert vars(dist.Work)["wait"] is wait


def test_a_reducer_waits_while_it_does_not_compute_and_is_looked_at_now_and_then_afterwards() -> None:
    rates: list[int] = []
    times_ns = {"backward_comm_time": 5e9, "backward_compute_comm_overlap_time": 3e9}
    replica: Any = SimpleNamespace(
        logger=SimpleNamespace(set_runtime_stats_and_log=lambda: None),
        _get_ddp_logging_data=lambda: times_ns,
        _set_ddp_runtime_logging_sample_rate=rates.append,
    )
    assert waits._reducer_wait_s(replica) == 2.0 and rates == [100]
