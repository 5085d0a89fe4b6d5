"""`paralab plan --check`: the layout that a plan prints is dry-run, and its memory compared."""

import re
import shlex
from typing import Any

import pytest

from paralab import cli
from paralab.axes.costs import GIB
from paralab.commands.plan_check import fullest
from paralab.console.phases import hidden
from paralab.layout import Layout
from paralab.measure.dry_run import dry_run
from paralab.options.config import RunConfig
from paralab.options.flags import resolve as read_config
from paralab.planning import answers, shapes
from paralab.planning.resolve import resolve
from paralab.planning.search import search


def test_the_layout_of_a_plan_is_dry_run_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--model gpt2 --size nano --gpu H100-SXM-80GB --n-gpus 2 --global-batch-size 8 --top 1 --check"
    assert cli.main(["plan", *words.split()]) == 0
    said = capsys.readouterr().out
    typed = re.search(r"paralab run --model gpt2 --size nano --layout (\S+)", said)
    assert typed is not None and f"Dry run of {typed[1]}: the plan is" in said
    sizes = [float(size) for size in re.findall(r"(?:planned|dry run) +([0-9.]+) GiB", said)]
    off = re.search(r"the plan is ([+-]\d+)% off", said)
    assert off is not None and len(sizes) == 2 and min(sizes) > 0
    assert 100 * (sizes[0] / sizes[1] - 1) == pytest.approx(float(off[1]), abs=10)  # of rounded sizes


@pytest.mark.parametrize(
    ("model", "layout", "precision"),
    [
        ("gpt2", "dp2", "bf16"),
        ("llama", "dp4/zero3", "bf16"),
        ("llama", "tp2", "bf16"),
        ("gpt2", "pp2/1f1b/mb4", "bf16"),
        pytest.param("gpt2", "pp2/gpipe/mb4", "fp32", marks=pytest.mark.long),
    ],
)
def test_a_plan_needs_the_memory_of_its_dry_run(model: str, layout: str, precision: str) -> None:
    """Tensors alone: weights in fp32 that are cast, and what a step of `paralab run` keeps and works with."""
    trained, raw = shapes.find(model, {"gpt2": "4x256x4v16384", "llama": "4x256x4/2v16384"}[model])
    trained = trained.with_length(512)
    divided = Layout.parse(layout)
    degrees = {name: divided.size(name) for name in ("dp", "tp", "pp")} | {"n_gpus": divided.world_size}
    raw = raw | degrees | {"sequence_length": 512, "global_batch_size": 16, "precision": precision}
    raw |= {"recompute": "none", "micro_batch_size": 4, "zero": divided.zero}
    planned, there = _planned_and_there(trained, raw, layout)
    assert planned == pytest.approx(there, rel=0.05)


def test_a_mixture_works_with_the_widths_that_its_tokens_meet() -> None:
    trained, raw = shapes.find("mixtral", "4x256x4/2e8/2f256h512v4096")
    raw |= {"dp": 2, "tp": 1, "pp": 1, "n_gpus": 2, "sequence_length": 512, "global_batch_size": 64}
    raw |= {"micro_batch_size": 32, "precision": "bf16", "recompute": "full", "zero": 0}
    planned, there = _planned_and_there(trained.with_length(512), raw, "dp2")
    assert planned == pytest.approx(there, rel=0.05)


@pytest.mark.parametrize(
    ("model", "layout", "precision", "recompute"),
    [
        pytest.param("diffusion", "dp4", "bf16", "none", marks=pytest.mark.long),
        pytest.param("diffusion", "dp4/zero3", "fp32", "none", marks=pytest.mark.long),
        ("diffusion", "dp4/zero3", "bf16", "none"),
        ("diffusion", "pp2/1f1b/mb4", "fp32", "none"),
        ("resnet", "dp4/zero2", "bf16", "none"),
        ("resnet", "tp2", "bf16", "full"),
    ],
)
def test_a_plan_of_images_needs_about_the_memory_of_its_dry_run(
    model: str, layout: str, precision: str, recompute: str
) -> None:
    """What was counted of a model, held as `paralab run` holds it."""
    trained, raw = shapes.find(model, {"diffusion": "dit-mnist", "resnet": "20"}[model])
    divided = Layout.parse(layout)
    degrees = {name: divided.size(name) for name in ("dp", "tp", "pp")} | {"n_gpus": divided.world_size}
    rows = 64 // divided.dp // divided.micro_batches
    raw = raw | degrees | {"global_batch_size": 64, "micro_batch_size": rows, "zero": divided.zero}
    planned, there = _planned_and_there(trained, raw | {"precision": precision, "recompute": recompute}, layout)
    assert planned == pytest.approx(there, rel=0.08)


def _planned_and_there(trained: shapes.Trained, raw: dict[str, Any], layout: str) -> tuple[float, float]:
    """Return the GiB of tensors that a plan has for a layout, and those of its dry run."""
    found = search(raw)
    lines = {answers.name(found, i): (i, answers.line_of(found, i, trained)) for i in range(len(found))}
    i, line = lines[layout]
    assert line is not None
    there = sum(fullest(read_config(shlex.split(line)[2:], config=RunConfig), hidden()).values()) / GIB
    return sum(float(sizes[i]) for name, sizes in found.memory_gib.items() if name != "overhead"), there


def test_shapes_alone_have_no_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *"--layers 2 --hidden 64 --n-gpus 2 --check".split()]) == 2
    assert "--check without --model" in capsys.readouterr().err


@pytest.mark.parametrize(("layout", "accumulation"), [("pp2/1f1b/mb7", 1), ("dp2/zero2", 7)])
def test_a_step_of_many_micro_batches_is_known_by_fewer(layout: str, accumulation: int) -> None:
    run = RunConfig(
        model="gpt2",
        size="2x32x4v257",
        seq_len=16,
        layout=Layout.parse(layout),
        accumulation=accumulation,
        global_batch_size=56,
    )
    whole = max(one.memory.peak_bytes for one in dry_run(resolve(run), backend="nccl"))
    assert sum(fullest(run, hidden()).values()) == pytest.approx(whole, rel=0.01)
