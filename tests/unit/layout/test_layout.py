"""Properties of parallel/layout/layout.py: what is printed parses back, and the batch is cut without loss."""

import pickle
from math import prod
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paralab.axes.data.ranks import shard_ranks
from paralab.errors import LayoutError
from paralab.layout import SCHEDULES, Division, Layout, common_divisors, layers_of_stages, schedules, words
from paralab.layout.schedules import ScheduleName

WORDS = [*SCHEDULES, "interleavedx3", "interleavedx16", "zero-bubblex1", "zero-bubblex4"]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any legal layout."""
    dp, tp, pp = (draw(st.integers(1, 16)) for _ in range(3))
    schedule = draw(st.sampled_from(WORDS)) if pp > 1 else None
    zero = draw(st.integers(0, 3)) if dp > 1 or tp == pp == 1 else 0
    groups = [n for n in range(2, dp) if dp % n == 0 and zero]
    return Layout(
        dp=dp,
        tp=tp,
        pp=pp,
        zero=zero,
        shard=draw(st.sampled_from([None, *groups])),
        schedule=schedule,
        micro_batches=draw(st.integers(1, 32)) if pp > 1 and schedule != "naive" else 1,
        first_layers=draw(st.none() | st.integers(1, 9)) if pp > 1 else None,
        last_layers=draw(st.none() | st.integers(1, 9)) if pp > 1 else None,
        sequence_parallel=draw(st.booleans()) if tp > 1 else False,
    )


divisions = st.builds(Division, *(st.integers(1, 6) for _ in range(4)))


@given(layouts())
def test_a_layout_prints_and_parses_back_to_itself(layout: Layout) -> None:
    assert Layout.parse(str(layout)) == layout
    assert Layout.parse(f"  {str(layout).upper()} ") == layout


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_process_may_have_a_zero_stage(stage: int) -> None:
    layout = Layout.parse(f"dp1/zero{stage}")
    assert layout == Layout(zero=stage) and str(layout) == f"dp1/zero{stage}" and layout.world_size == 1
    assert Layout(dp=4, zero=stage).on(1, parts_of=None) == layout  # nodes that go leave one


@given(layouts())
def test_the_dims_of_the_mesh_make_up_the_axes(layout: Layout) -> None:
    assert prod(layout.dims.values()) == layout.world_size
    assert ("dp_shard" in layout.dims) == (layout.shard is not None)
    assert all(layout.size(name) == size for name, size in layout.dims.items())


def test_the_type_checker_knows_the_axes_and_options_of_the_house() -> None:
    declared = {axis.name for axis in words.AXES} | {option.name for option in words.options()}
    assert {name for name in Layout.__annotations__ if not name.startswith("_")} == declared


def test_every_schedule_stands_under_its_name() -> None:
    assert tuple(SCHEDULES) == get_args(ScheduleName) == tuple(schedule.name for schedule in SCHEDULES.values())


def test_a_layout_does_not_change() -> None:
    with pytest.raises(AttributeError, match="but"):
        Layout(dp=2).dp = 3
    with pytest.raises(TypeError, match="micro_batch"):
        Layout(micro_batch=2)
    assert pickle.loads(pickle.dumps(Layout(dp=2, zero=3))) == Layout(zero=3).but(dp=2) != Layout(dp=2)


@given(layouts())
def test_groups_of_data_ranks_make_up_the_data_axis(layout: Layout) -> None:
    assert (shard_ranks(layout) > 1) == (layout.zero > 0 and layout.dp > 1)
    assert layout.dp % shard_ranks(layout) == 0
    assert (layout.shard is not None) == (layout.zero > 0 and shard_ranks(layout) < layout.dp)


@pytest.mark.parametrize(
    ("processes", "there"), [(8, "dp8/zero3/shard2"), (3, "dp3/zero3"), (2, "dp2/zero3"), (1, "dp1/zero3")]
)
def test_groups_stay_where_they_divide_the_data_ranks_that_are_left(processes: int, there: str) -> None:
    assert str(Layout.parse("dp4/zero3/shard2").on(processes, parts_of=None)) == there


@given(layouts(), st.randoms(use_true_random=False))
def test_the_order_of_degrees_and_options_does_not_matter(layout: Layout, random) -> None:
    degrees, *options = str(layout).split("/")
    parts = degrees.split(".")
    random.shuffle(parts)
    random.shuffle(options)
    assert Layout.parse("/".join([".".join(parts), *options])) == layout


@given(layouts())
def test_axes_and_world_size_agree_with_the_degrees(layout: Layout) -> None:
    product = 1
    for axis in layout.axes:
        product *= getattr(layout, axis)
    assert product == layout.world_size
    layout.check_world(layout.world_size)
    with pytest.raises(LayoutError, match=f"--nproc {layout.world_size},"):
        layout.check_world(layout.world_size + 1)


@given(st.sampled_from(WORDS), st.integers(2, 8))
def test_every_stage_is_held_by_exactly_one_rank(word: str, pp: int) -> None:
    layout = Layout(pp=pp, schedule=word)
    schedule = schedules.find(word)
    assert schedule is not None and schedule.word == word and layout.pipeline == schedule
    held = sorted(stage for rank in range(pp) for stage in schedule.stages_of(rank, pp))
    assert held == list(range(layout.stages))
    for rank in range(pp):
        assert all(schedule.rank_of(stage, pp) == rank for stage in schedule.stages_of(rank, pp))


@given(st.integers(2, 12), st.none() | st.integers(1, 5), st.none() | st.integers(1, 5), st.integers(0, 30))
def test_stages_have_all_layers_and_share_evenly_what_the_ends_leave(
    stages: int, first: int | None, last: int | None, more: int
) -> None:
    others = stages - (first is not None) - (last is not None)
    layers = (first or 0) + (last or 0) + others + (more if others else 0)
    counts = layers_of_stages(layers, stages, first=first, last=last)
    assert (len(counts), sum(counts)) == (stages, layers) and min(counts) >= 1
    assert first in (None, counts[0]) and last in (None, counts[-1])
    shared = counts[first is not None : stages - (last is not None)]
    assert list(shared) == sorted(shared, reverse=first is None and last is None)
    assert not shared or max(shared) - min(shared) <= 1


@given(divisions)
def test_data_ranks_cover_the_global_batch_once(division: Division) -> None:
    rows = [division.rows_of(rank) for rank in range(division.dp)]
    assert sorted(row for part in rows for row in part) == list(range(division.global_batch_size))
    assert all(part == sorted(part) for part in rows)


@given(divisions)
def test_what_all_data_ranks_see_together_is_a_slice_of_the_global_batch(division: Division) -> None:
    size = division.micro_batch_size
    rows = [division.rows_of(rank) for rank in range(division.dp)]
    in_order = [
        row for chunk in range(division.chunks) for part in rows for row in part[chunk * size : (chunk + 1) * size]
    ]
    assert in_order == list(range(division.global_batch_size))


@given(layouts(), st.integers(1, 5), st.integers(1, 4))
def test_divide_gives_back_the_global_batch(layout: Layout, micro_batch_size: int, accumulation: int) -> None:
    total = layout.dp * layout.micro_batches * accumulation * micro_batch_size
    division = layout.divide(total, accumulation)
    assert division.global_batch_size == total
    assert (division.dp, division.micro_batch_size) == (layout.dp, micro_batch_size)


@pytest.mark.parametrize("batch", [1, 7, 9, 1001])
def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do(batch: int) -> None:
    layout = Layout.parse("dp2.pp2/1f1b/mb2")
    with pytest.raises(LayoutError, match="--global-batch-size") as caught:
        layout.divide(batch, 2)
    for size in str(caught.value).split("--global-batch-size ")[1].split(", or --")[0].split(" or "):
        assert abs(int(size) - batch) < 8
        layout.divide(int(size), 2)


@given(layouts(), st.integers(1, 40), st.integers(1, 3))
def test_where_a_batch_must_stay_the_layout_to_type_divides_it(layout: Layout, batch: int, accumulation: int) -> None:
    try:
        layout.divide(batch, accumulation, fixed=True)
    except LayoutError as error:
        advice = str(error).split(": use ")[1].split()
        assert "--global-batch-size" not in advice
        if advice == ["--accumulation", "1"]:
            assert batch % accumulation
            return
        other = Layout.parse(advice[-1])
        assert (advice[0] == "--nproc") == (other.world_size < layout.world_size)
        other.check_schedule(accumulation)
        other.divide(batch, accumulation)


def test_fewer_micro_batches_are_advised_before_fewer_ranks_and_another_schedule() -> None:
    for text, batch, advice in (
        ("pp4/1f1b/mb8", 4, "use --global-batch-size 8, or --layout pp4/1f1b/mb4$"),
        ("pp8/1f1b/mb8", 4, "or --layout pp8/gpipe/mb4$"),
        ("dp4/zero2", 6, "use --global-batch-size 4 or 8, or --nproc 3 --layout dp3/zero2$"),
    ):
        with pytest.raises(LayoutError, match=advice):
            Layout.parse(text).divide(batch)


@given(layouts(), st.integers(1, 4))
def test_what_check_schedule_says_to_type_is_accepted(layout: Layout, accumulation: int) -> None:
    try:
        layout.check_schedule(accumulation)
    except LayoutError as error:
        advice = str(error).split("write the layout as ")[1].split(",")[0]
        Layout.parse(advice).check_schedule(accumulation)


@pytest.mark.parametrize(
    ("text", "accumulation", "advice"),
    [
        ("pp3/interleaved", 2, "pp3/interleaved/mb3"),
        ("pp4/zero-bubble/mb5", 1, "pp4/zero-bubble/mb8"),
        ("pp4/zero-bubble/mb3", 2, "pp4/zero-bubble/mb4"),
        ("pp4/interleavedx3/mb6", 1, "pp4/interleavedx3/mb8"),
        ("pp2/dualpipev", 1, "pp2/dualpipev/mb4"),
        ("pp4/1f1b", 2, "pp4/1f1b/mb2"),
    ],
)
def test_too_few_micro_batches_are_refused_with_the_smallest_that_fit(
    text: str, accumulation: int, advice: str
) -> None:
    with pytest.raises(LayoutError, match=f"write the layout as {advice},"):
        Layout.parse(text).check_schedule(accumulation)


def test_1f1b_needs_a_micro_batch_for_each_stage() -> None:
    enough = Layout.parse("pp4/1f1b/mb4")
    enough.check_schedule()
    with pytest.raises(LayoutError, match="pp4/1f1b/mb4"):
        enough.but(micro_batches=3).check_schedule()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a degree"),
        ("dp", "is not a degree"),
        ("xp2", "is not a degree"),
        ("dp-2", "is not a degree"),
        ("dp0", "at least 1"),
        ("dp2.dp2", "twice"),
        ("dp2/zero1/zero2", "twice"),
        ("dp2/zero4", "0, 1, 2 or 3"),
        ("dp2/zreo1", r"did you mean zero1\?"),
        ("pp2/1fb1", r"did you mean 1f1b\?"),
        ("tp2/1f1b", "without a pipeline"),
        ("tp2/mb4", "without a pipeline"),
        ("pp2/mb0", "at least mb1"),
        ("pp2/naive/mb2", "use gpipe"),
        ("pp2/zb-h1/mb2", "one stage a rank of zero-bubble, write zero-bubblex1"),
        ("pp2/zb-h2/mb2", "torch.distributed.pipelining has no such schedule, use zero-bubblex1, which is ZB-H1, or"),
        ("pp2/interleavedx1", "one stage a rank is 1f1b"),
        ("pp2/interleaved3", r"did you mean interleaved\?"),
        ("pp2/zbvx3", r"did you mean zbv\?"),
        ("tp2/first2", "first2 without a pipeline"),
        ("pp2/last0", "at least one layer, use last1"),
        ("pp2/lats2", r"did you mean last2\?"),
        ("dp2/sp", "without tensor"),
        ("tp2/zero1", "nothing to shard"),
        ("dp4/shard2", "without ZeRO.*add zero3"),
        ("dp4/zero3/shard4", "plain ZeRO, leave shard4 out"),
        ("dp4/zero3/shard1", "use shard2, or"),
        ("dp12/zero3/shard5", "use shard4 or shard6, or"),
        ("dp3/zero3/shard2", "use another dp, or"),
        ("dp4/zero3/shard2/shard2", "twice"),
        ("dp4/zero3/shrad2", r"did you mean shard2\?"),
    ],
)
def test_a_bad_layout_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(LayoutError, match=says) as caught:
        Layout.parse(text)
    assert "\n" not in str(caught.value)


def test_common_divisors_divide_every_number_so_many_times_over() -> None:
    assert common_divisors([12, 18]) == [1, 2, 3, 6]
    assert common_divisors([12, 18], times=2) == [1, 3]
    assert common_divisors([7], times=2) == []
    assert common_divisors([128]) == [1, 2, 4, 8, 16, 32, 64]
    assert common_divisors([128], most=128)[-1] == 128
