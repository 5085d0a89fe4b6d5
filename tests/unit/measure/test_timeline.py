"""What a schedule must leave idle, and what was idle."""

from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paralab.axes.pipeline.passes import pass_order
from paralab.layout import SCHEDULES, Layout, schedules
from paralab.layout.schedules import Pass
from paralab.measure.span import SpanRecord
from paralab.measure.timeline import Timeline, bubble_share, bubble_theory_share, idle_shares, planned
from paralab.processes.mesh import Mesh


def theory(schedule: str, pp: int, micro_batches: int) -> float:
    return bubble_theory_share(pass_order(schedule, pp=pp, micro_batches=micro_batches))


@settings(deadline=None, max_examples=30)
@given(schedule=st.sampled_from(["gpipe", "1f1b"]), pp=st.integers(1, 8), micro_batches=st.integers(1, 20))
def test_one_stage_a_rank(schedule: str, pp: int, micro_batches: int) -> None:
    # Narayanan et al. 2021, section 2.2
    assert theory(schedule, pp, micro_batches) == pytest.approx((pp - 1) / (micro_batches + pp - 1))


@given(pp=st.integers(2, 8), micro_batches=st.integers(1, 20))
def test_the_layer_split_has_one_rank_at_work(pp: int, micro_batches: int) -> None:
    assert theory("naive", pp, micro_batches) == pytest.approx(1 - 1 / pp)


@pytest.mark.parametrize("rounds", [1, 2, 4])
@pytest.mark.parametrize("pp", [2, 3, 4, 8])
def test_several_stages_a_rank_divide_the_bubble(pp: int, rounds: int) -> None:
    # Narayanan et al. 2021, section 2.2: the bubble is (pp - 1) (F + B) / stages
    for schedule, stages in (("interleaved", 2), ("interleavedx3", 3), ("interleavedx4", 4)):
        assert theory(schedule, pp, pp * rounds) == pytest.approx((pp - 1) / (stages * pp * rounds + pp - 1))


@pytest.mark.parametrize("schedule", ["zero-bubble", "zbv", "dualpipev"])
@pytest.mark.parametrize("pp", [2, 4])
def test_splitting_backward_leaves_one_forward_a_rank(pp: int, schedule: str) -> None:
    # The rank that starts last waits pp - 1 forwards of one stage: of 6 passes' time a micro-batch and rank.
    micro_batches = 4 * pp
    assert theory(schedule, pp, micro_batches) == pytest.approx((pp - 1) / (6 * micro_batches + pp - 1))


@pytest.mark.parametrize("pp", [2, 4])
def test_one_stage_a_rank_of_zero_bubble_is_zb_h1(pp: int) -> None:
    # Qi et al. 2023: a bubble of (pp - 1) (F + B - W), a third of that of 1F1B, and pp micro-batches under way
    micro_batches = 4 * pp
    assert theory("zero-bubblex1", pp, micro_batches) == pytest.approx((pp - 1) / (3 * micro_batches + pp - 1))
    for steps in pass_order("zero-bubblex1", pp=pp, micro_batches=micro_batches):
        held = accumulate({"F": 1, "I": 0, "W": -1, "B": -1}[step.kind] for step in steps)
        assert max(held) == pp


@pytest.mark.parametrize("schedule", [*SCHEDULES, "interleavedx4", "zero-bubblex1"])
def test_an_order_has_every_pass_once(schedule: str) -> None:
    pp, micro_batches, found = 2, 4, schedules.find(schedule)
    assert found is not None
    for rank, steps in enumerate(pass_order(schedule, pp=pp, micro_batches=micro_batches)):
        held = [(stage, i) for stage in found.stages_of(rank, pp) for i in range(micro_batches)]
        for kinds in ("F", "BI", "BW"):
            assert sorted((step.stage, step.micro_batch) for step in steps if step.kind in kinds) == sorted(held)


def test_an_order_in_which_ranks_wait_for_each_other_is_refused() -> None:
    order = [[Pass("B", 0, 0), Pass("F", 0, 0)], [Pass("F", 1, 0), Pass("B", 1, 0)]]
    with pytest.raises(AssertionError, match="wait for each other"):
        bubble_theory_share(order)


def test_half_a_backward_waits_for_that_of_the_next_stage() -> None:
    order = [[Pass(kind, stage, 0) for kind in ("F", "I", "W")] for stage in (0, 1)]
    assert [[(done.start, done.end) for done in rank] for rank in planned(order)] == [
        [(0, 1), (3, 4), (4, 5)],
        [(1, 2), (2, 3), (3, 4)],
    ]


def span(rank: int, start_s: float, end_s: float) -> SpanRecord:
    return SpanRecord(step=3, rank=rank, stage=rank, kind="F", micro_batch=0, start_s=start_s, end_s=end_s)


def test_idle_time_is_counted_from_the_first_pass_of_any_rank_to_the_last() -> None:
    spans = [span(0, 10.0, 12.0), span(0, 13.0, 14.0), span(1, 12.0, 13.0)]
    assert idle_shares(spans) == {0: pytest.approx(0.25), 1: pytest.approx(0.75)}
    assert bubble_share(spans) == pytest.approx(0.5)


class Stage:
    """What a timeline sees of a stage."""

    stage_index = 1

    def forward_one_chunk(self, chunk: int, scale: int = 1) -> int:
        return scale * chunk

    def backward_one_chunk(self, chunk: int, full_backward: bool = True) -> None:
        if chunk < 0:
            raise ValueError("chunk")

    def backward_weight_one_chunk(self, chunk: int) -> None:
        pass


def timeline(stage: Any) -> Timeline:
    return Timeline([stage], Mesh(Layout(), torch.device("cpu")))


def test_passes_are_noted_in_order() -> None:
    stage = Stage()
    with timeline(stage) as seen:
        assert stage.forward_one_chunk(3, scale=2) == 6
        stage.backward_one_chunk(3, full_backward=False)
        stage.backward_weight_one_chunk(3)
    stage.forward_one_chunk(4)  # outside
    spans = seen.spans(step=7, rank=2)
    assert [(s.step, s.rank, s.stage, s.kind, s.micro_batch) for s in spans] == [(7, 2, 1, kind, 3) for kind in "FBW"]
    times = [0.0, *(at for s in spans for at in (s.start_s, s.end_s))]
    assert times == sorted(times)
    assert times[-1] < 10.0


def test_a_schedule_that_runs_several_times_a_step_goes_on_counting() -> None:
    stage = Stage()
    with timeline(stage) as seen:
        for _ in range(3):
            stage.forward_one_chunk(0)
            stage.backward_one_chunk(0)
    assert [s.micro_batch for s in seen.spans(step=0, rank=0)] == [0, 0, 1, 1, 2, 2]


def test_stages_are_left_as_they_were_after_an_error() -> None:
    stage = Stage()
    with pytest.raises(ValueError, match="chunk"), timeline(stage):
        stage.backward_one_chunk(-1)
    assert vars(stage) == {}
