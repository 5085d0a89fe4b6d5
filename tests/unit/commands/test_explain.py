"""What `paralab explain` draws is what the axes say of themselves, and what a step really does."""

import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from paralab import cli
from paralab.axes.axis import MOMENTS, Moment
from paralab.axes.held import state_bytes_of
from paralab.axes.sent import predicted_sent
from paralab.commands.explain import requested
from paralab.commands.explain_step import Explained, explained, lane_of, sendings, shown
from paralab.commands.explain_svg import picture
from paralab.commands.explain_text import apart, text
from paralab.engines import native
from paralab.layout import Layout
from paralab.measure.dry_run import _batch
from paralab.measure.ledger import CommLedger
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.mesh import Mesh
from paralab.processes.pretend import pretended

SMALL = "2x16x2v64"


@cache
def step(layout: str, model: str = "gpt2", size: str = SMALL) -> Explained:
    return explained(RunConfig(model=model, size=size, layout=Layout.parse(layout), global_batch_size=16))


@pytest.mark.parametrize("layout", ["dp2.tp2", "tp2.pp2/mb4", "dp4/zero3/shard2"])
def test_a_picture_has_all_that_is_sent_and_held(layout: str) -> None:
    drawn = step(layout)
    for number, lane in enumerate(drawn.lanes):
        pp_rank = lane.place.get("pp", 0)
        found: dict[str, Fraction] = defaultdict(Fraction)
        for sending in drawn.sendings:
            found[sending.axis] += sending.sent[number]
        predicted = predicted_sent(drawn.work, pp_rank).wire_bytes
        assert {axis: sent for axis, sent in found.items() if sent} == {a: s for a, s in predicted.items() if s}
        state = state_bytes_of(drawn.work, pp_rank)
        assert (lane.held["weights"], lane.held["optimizer"]) == (state.parameters, state.optimizer)
        assert lane.held["most at once"] > lane.held["activations"] > 0


def test_a_small_model_is_drawn_in_a_unit_that_shows_it_and_long_names_move_no_number() -> None:
    lines = list(text(step("dp4/zero3/shard2")))
    assert any(line.startswith("Sent by each rank, KiB") for line in lines)
    shard = [line for line in lines if line.startswith("  dp_shard")]
    assert len(shard) == 3 and max(map(len, lines)) <= 80
    assert len({line.index("─") for line in shard}) == 1, "the lines of a group begin in its first lane"


class ByMoment(TorchDispatchMode):
    """Hands what is called to the ledger of the moment that the step is in; backward is seen by autograd."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self.after_forward: Moment = "forward"
        self.ledgers = {moment: CommLedger(mesh.groups(), backend="gloo") for moment in MOMENTS}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        moment: Moment = "backward" if torch._C._current_graph_task_id() >= 0 else self.after_forward
        return self.ledgers[moment].__torch_dispatch__(func, types, args, kwargs)

    def within(self, moment: Moment, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self.after_forward = moment
            return call(*args)

        return run


@pytest.mark.parametrize(
    ("layout", "checkpointing"),
    [
        ("dp4", "none"),
        ("dp4/zero1", "none"),
        ("dp4/zero3", "none"),
        ("dp4/zero2/shard2", "none"),
        ("dp2.tp2/sp", "full"),
        ("dp2.tp2/zero3", "none"),
        ("cp2/ring", "full"),
    ],
)
def test_each_collective_is_drawn_in_the_moment_in_which_it_is_called(layout: str, checkpointing: str) -> None:
    run = RunConfig(size=SMALL, layout=Layout.parse(layout), global_batch_size=16, checkpointing=checkpointing)
    work = resolve(run, dry=True)
    with pretended(work.layout, 0) as mesh:
        engine, seen = native.build(work.context(mesh)), ByMoment(mesh)
        with mesh.tensors():
            engine.begin_states()
            engine.finish = [seen.within("gradients", finish) for finish in engine.finish]
            moments: dict[str, Any] = {"_over_ranks": "norm", "_update": "update"}
            for method, moment in moments.items():
                setattr(engine, method, seen.within(moment, getattr(engine, method)))
            with seen:
                engine.step(_batch(work))
    rows = [(moment, row) for moment, ledger in seen.ledgers.items() for row in ledger.rows() if row.wire_bytes]
    counted = {(f"{moment} {row.axis}", row.op): row.wire_bytes for moment, row in rows}
    drawn: dict[tuple[str, str], Fraction] = defaultdict(Fraction)
    for sending in sendings(work, [lane_of(0, work, [])], "gloo"):
        drawn[f"{sending.when} {sending.axis}", sending.op] += sending.sent[0]
    assert drawn == counted


def test_ranks_of_a_group_are_joined() -> None:
    groups = {sending.axis: sending.groups for sending in step("dp2.tp2").sendings}
    assert groups == {"tp": [[0, 1], [2, 3]], "dp": [[0, 2], [1, 3]], "world": [[0, 1, 2, 3]]}
    assert apart(groups["tp"]) == [[[0, 1], [2, 3]]] and apart(groups["dp"]) == [[[0, 2]], [[1, 3]]]


def test_passes_are_those_of_the_schedule() -> None:
    (passes,) = step("tp2.pp2/mb4").passes
    assert passes.axis == "pp" and passes.lost == pytest.approx(1 / 5)  # (pp - 1) / (micro-batches + pp - 1)
    lines = [line.strip() for line in text(step("tp2.pp2/mb4")) if line.startswith("  pp")]
    assert lines[-2:] == ["pp0  ab··AAcBBdCC·DD", "pp1  ·aAAbBBcCCdDD··"]


@pytest.mark.parametrize(
    ("layout", "ranks"), [("dp4", 4), ("dp16", 8), ("dp16.tp8.pp8/mb8", 8), ("dp2.tp2.pp2/mb2", 8), ("dp3", 3)]
)
def test_no_more_ranks_are_drawn_than_fit(layout: str, ranks: int) -> None:
    drawn = shown(Layout.parse(layout))
    assert len(drawn) == len(set(drawn)) == ranks and drawn[0] == 0 and max(drawn) < Layout.parse(layout).world_size


@pytest.mark.parametrize("layout", ["dp4/zero3/shard2", "dp2.tp2.pp2/mb4"])
def test_both_pictures_show_the_same_numbers_and_fit(layout: str) -> None:
    drawn = step(layout)
    lines = list(text(drawn))
    assert max(map(len, lines)) <= 80 and lines[0] == drawn.title
    root = ET.fromstring(picture(drawn))
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for lane in drawn.lanes:
        assert f"rank {lane.rank}" in words
    for sending in drawn.sendings:
        label = f"{sending.op.replace('_', '-')} ×{sending.calls}"
        assert f"{sending.axis}  {label}" in words and any(f"{sending.axis} {label}" in line for line in lines)


def test_what_has_no_dry_run_is_drawn_without_activations() -> None:
    drawn = step("dp2/offload-optimizer")
    assert "activations" not in drawn.lanes[0].held and drawn.lanes[0].held["weights"] > 0
    assert "because there is no dry run: " in " ".join(text(drawn))


def test_a_strategy_or_a_layout_may_stand_first() -> None:
    assert requested(["zero3"]).strategy == "zero3" and requested(["fsdp"]).strategy == "zero3"
    assert requested(["dp2.tp2/sp", "--nproc", "4"]).layout == Layout.parse("dp2.tp2/sp")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name it, such as paralab explain zero3"),
        (["zero4"], "zero3"),
        (["dp4/zero9"], "ZeRO stage is 0, 1, 2 or 3"),
        (["zero3", "--steps", "3"], "--steps with paralab explain"),
        (["tp5"], "tp=5"),
        (["zero3", "--engine", "deepspeed"], "draws the steps of --engine torch"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explain", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_the_command_prints_one_picture_and_writes_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "picture.svg"
    assert cli.main(["explain", "tensor", "--size", SMALL, "--nproc", "2", "--out", str(out)]) == 0
    drawn = explained(RunConfig(size=SMALL, strategy="tensor", nproc=2))
    assert capsys.readouterr().out == "\n".join([*text(drawn), "", f"wrote {out}", ""])
    assert out.read_text(encoding="utf-8") == picture(drawn)
