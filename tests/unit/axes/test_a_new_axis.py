"""A new axis is a class of a few lines, and no other file knows of it: layouts, predictions and rows have it.

`tests/dist/test_a_new_axis.py` runs the same axis on several ranks.
"""

import inspect
import json
from collections.abc import Iterator
from math import prod
from typing import Any

import pytest
import torch.distributed as dist

from paralab.axes import Axis, all_axes, compose, register, unregister
from paralab.axes.axis import Finish, Transfer
from paralab.axes.held import state_bytes, state_bytes_of_all
from paralab.axes.initialise import local
from paralab.axes.sent import predicted_sent
from paralab.axes.shapes import weight_bytes
from paralab.commands.explain_step import explained
from paralab.commands.explain_svg import picture
from paralab.commands.explain_text import text
from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.layout.strategies import name_of
from paralab.layout.words import LayoutOption, number_option
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.failure import Failure
from paralab.processes.rank import Rank
from paralab.records.describe import failed
from paralab.records.requested import Requested
from paralab.records.row import RunRecord


class Twins(Axis):
    """Ranks that see the same samples, and average the gradients that each of them made of these."""

    name, title = "tw", "twin"
    options: tuple[LayoutOption, ...] = (number_option("every", "every", default=1, examples=("every2",)),)

    def after_backward(self, parts: Any, context: Any) -> Finish:
        def average() -> None:
            for grad in (local(p.grad) for part in parts.values() for p in part.parameters()):
                dist.all_reduce(grad, group=context.mesh.group("tw"))
                grad /= context.layout.tw

        return Finish(average)

    def sent(self, stage: Any, plan: Any) -> Iterator[tuple[str, Transfer]]:
        yield "tw", Transfer("all_reduce", plan.layout.tw, sum(map(prod, stage.shapes.values())) * weight_bytes(plan))


@pytest.fixture
def twins() -> Iterator[Twins]:
    axis = Twins()
    register(axis)
    yield axis
    unregister(axis)


def test_an_axis_takes_few_lines() -> None:
    lines = [line for line in inspect.getsource(Twins).splitlines() if line.strip() and '"""' not in line]
    assert len(lines) <= 15


def test_its_layout_parses_and_prints(twins: Twins) -> None:
    layout = Layout.parse("dp2.tw3/every2/zero1")
    assert (layout.tw, layout.every, layout.world_size, layout.axes) == (3, 2, 6, ("dp", "tw"))
    assert str(layout) == "dp2.tw3/zero1/every2" and Layout.parse(str(layout)) == layout
    assert layout.dims == {"pp": 1, "dp": 2, "cp": 1, "tp": 1, "tw": 3}
    assert (name_of(layout), name_of(Layout(tw=2))) == ("dp+tw", "tw")
    with pytest.raises(LayoutError, match="every2"):
        Layout.parse("tw2/evry2")
    with pytest.raises(LayoutError, match="tw3"):
        layout.check_world(8)


def test_a_layout_without_it_is_what_it_was(twins: Twins) -> None:
    assert Layout.parse("dp2/zero1") == Layout(dp=2, zero=1) and Layout(dp=2).tw == 1


def test_it_is_predicted(twins: Twins) -> None:
    work = resolve(RunConfig(model="gpt2", size="tiny", layout=Layout(tw=2)))
    gradients = 4 * work.n_parameters
    assert predicted_sent(work).ring_bytes == {"tw": gradients + 8}  # of two ranks, beside the loss and the norm
    alone = resolve(RunConfig(model="gpt2", size="tiny", layout=Layout()))
    assert state_bytes(work) == state_bytes(alone)
    assert state_bytes_of_all(work) == 2 * state_bytes_of_all(alone)


def test_it_is_explained(twins: Twins) -> None:
    run = RunConfig(model="gpt2", size="tiny", layout=Layout(dp=2, tw=2))
    step = explained(run)
    (sending,) = [sending for sending in step.sendings if sending.axis == "tw"]
    assert (sending.when, sending.op, sending.groups) == ("gradients", "all_reduce", [[0, 1], [2, 3]])
    assert set(sending.sent) == {predicted_sent(step.work).wire_bytes["tw"]}
    assert any("tw all-reduce ×1" in line for line in text(step)) and "tw1" in picture(step)
    assert step.lanes[0].held["activations"] > 0  # the axis itself was run for them


def test_a_row_has_its_columns(twins: Twins) -> None:
    work = resolve(RunConfig(model="gpt2", size="tiny", layout=Layout(tw=2, every=3)))
    row = failed(work, Requested(), Rank(0, 2, 0, 2, "torchrun"), Failure(0, 1, "crash", "for this test"))
    assert row.layout == "tw2/every3" and json.loads(row.axes_json or "") == {"tw": 2, "every": 3}


@pytest.mark.parametrize("name", ["tw", "dp", "zero", "stages", "a1", "Tw", ""])
def test_a_name_that_is_taken_or_cannot_be_written_is_refused(twins: Twins, name: str) -> None:
    axis = Twins()
    axis.name, axis.options = name, ()
    with pytest.raises(ValueError, match="use"):
        register(axis)


def test_what_a_step_has_once_comes_from_one_axis() -> None:
    assert (compose._only([None, "one"]), compose._only([None])) == ("one", None)
    with pytest.raises(LayoutError, match="use a layout with one of them"):
        compose._only(["one", None, "two"])


def test_the_built_in_axes_have_columns_of_their_own() -> None:
    columns = set(RunRecord.__dataclass_fields__)
    for axis in all_axes():
        assert set(axis.columns(Layout())) <= columns
        assert {f"comm_{axis.name}_{count}" for count in ("calls", "sent_bytes", "predicted_sent_bytes")} <= columns
