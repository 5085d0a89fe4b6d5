"""What is taken for empty cells, and how layers are divided over the ranks of a pipeline."""

import numpy as np
import pytest

from paralab.axes import Axis, register, unregister
from paralab.axes.case import Values
from paralab.axes.costs import AxisCost, Pass, Plan
from paralab.benchmarks.planner.cases import published
from paralab.planning.predict import evaluate, predict
from paralab.planning.settle import settle
from paralab.planning.stages import evenly
from paralab.planning.steptime import step_time_s


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zbv"])
@pytest.mark.parametrize("pp", [2, 3, 4, 8])
@pytest.mark.parametrize("layers", [24, 25, 30, 31, 47])
def test_layers_are_divided_as_if_the_stages_were_written_out(layers: int, pp: int, schedule: str) -> None:
    vpp = 1 if schedule == "1f1b" else 2
    stages = tuple(layers // (pp * vpp) + (i < layers % (pp * vpp)) for i in range(pp * vpp))
    shape = {"layers": layers, "hidden": 512, "pp": pp, "vpp": vpp, "schedule": schedule, "global_batch_size": 16}
    written, even = settle({**shape, "layers_per_stage": stages}).case, settle(shape).case
    for name in ("layers_first", "layers_middle", "layers_last", "layers_held"):
        assert getattr(written, name) == getattr(even, name), name
    assert schedule == "zbv" or written.held_rank == even.held_rank  # on a V all ranks keep as many micro-batches


def test_layers_of_many_layouts_are_divided_at_once() -> None:
    pp, vpp = np.array([1, 2, 4, 8]), np.array([1, 1, 2, 1])
    together = evenly(30, pp, vpp, np.array(["", "1f1b", "interleaved", "1f1b"]))
    for i in range(4):
        alone = evenly(30, int(pp[i]), int(vpp[i]), "1f1b")
        assert {name: int(value[i]) for name, value in together.items()} == {n: int(v) for n, v in alone.items()}


def test_ten_thousand_layouts_take_less_than_a_second() -> None:
    """So that a search may try every layout. A tenth of that is usual."""
    import time

    every = published()
    many = np.arange(10_000) % len(every.table)
    case = every.case.but(**{name: value[many] for name, value in vars(every.case).items()})
    machine = type(every.machine)(**{name: value[many] for name, value in vars(every.machine).items()})
    began = time.process_time()
    assert evaluate(case, machine).step_time_s.shape == (10_000,)
    assert time.process_time() - began < 1


def test_an_axis_of_ones_own_adds_its_time() -> None:
    class Cost(AxisCost):
        def in_step(self, plan: Plan, compute: Pass) -> Values:
            return 0.25

    class Toy(Axis):
        name, title = "toy", "toy"

        def cost(self) -> AxisCost:
            return Cost()

    settled = settle({"layers": 4, "hidden": 512})
    before = predict([settled]).step_time_s
    axis = Toy()
    register(axis)
    try:
        assert predict([settled]).step_time_s == pytest.approx(before + 0.25)
    finally:
        unregister(axis)


def test_a_case_of_numbers_gives_what_arrays_give() -> None:
    """With dp alone an array: the rest of the case stays plain numbers."""
    every = published()
    one, machine = every.settled[0].case, every.part(np.arange(len(every.table)) == 0).machine
    from paralab.planning.constants import shipped

    dp = np.array([1.0, 2.0, 4.0])
    found = step_time_s(Plan(one.but(dp=dp, n_gpus=dp * one.tp * one.pp), machine, shipped()))
    for i in range(3):
        alone = Plan(one.but(dp=float(dp[i]), n_gpus=float(dp[i]) * one.tp * one.pp), machine, shipped())
        assert step_time_s(alone)[0] == pytest.approx(found[i], rel=1e-12)


@pytest.mark.parametrize(
    ("framework", "precision", "bytes_"),
    [("deepspeed", "fp16", 2), ("deepspeed", "bf16", 2), ("torchtitan", "bf16", 4), ("megatron-deepspeed", "bf16", 4)],
)
def test_gradients_have_the_precision_that_the_software_adds_them_in(
    framework: str, precision: str, bytes_: int
) -> None:
    raw = {"layers": 4, "hidden": 128, "framework": framework, "precision": precision}
    assert settle(raw).case.gradient_bytes == bytes_
