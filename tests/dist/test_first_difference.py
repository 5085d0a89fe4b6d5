"""Where a layout has a fault, the first layer, gradient or update that differs is named, with its collective."""

from dataclasses import replace
from typing import Any

import pytest

from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.parity.result import ParityResult
from tests.dist.test_parity import MODELS
from tests.dist.workers import WorkerPool

ALL, FOUR, SUM = "on ranks 0 and 1", "on ranks 0, 1, 2 and 3", "after its all_reduce over"
BEFORE, AFTER = (f"as it comes from the stage {which} (send over pp)" for which in ("before", "after"))


def run_of(model: str, layout: str, **options: Any) -> RunConfig:
    given = {"global_batch_size": 16, "steps": 20, **MODELS[model], "layout": Layout.parse(layout), **options}
    return RunConfig(**given)


@pytest.mark.parametrize(
    ("layout", "fault", "named"),
    [
        ("tp2", "terms of a row layer are not summed", f"the output of blocks.1.attn.proj {ALL}, {SUM} tp"),
        ("tp2.pp2/mb2", "terms of a row layer are not summed", f"the output of blocks.1.attn.proj {ALL}, {SUM} tp"),
        (
            "tp2",
            "the gradient of an input is not summed",
            f"the gradient of the input of blocks.1.mlp.up {ALL}, {SUM} tp",
        ),
        ("tp2", "a column layer has the wrong piece", "the value of blocks.0.mlp.up.weight before the step on rank 1:"),
        ("tp2/sp", "gradients of norms are not summed", f"the gradient of blocks.0.norm2.weight {ALL}, {SUM} tp"),
        (
            "tp2",
            "the norm counts an axis twice",
            f"the gradient norm {ALL}, {SUM} all ranks, while every gradient agrees",
        ),
        ("pp2/mb2", "a stage gets the activation before", f"the input of blocks.2 on rank 1, {BEFORE}"),
        ("pp2/zbv/mb2", "a stage gets the activation before", f"the input of blocks.1 on rank 1, {BEFORE}"),
        (
            "pp2/gpipe/mb2",
            "a stage gets the gradient before",
            f"the gradient of the output of blocks.1 on rank 0, {AFTER}",
        ),
        (
            "pp2/mb2",
            "tied gradients are not exchanged",
            f"the gradient of embed.tokens.weight {ALL}, after its send over pp",
        ),
        (
            "dp2",
            "a residual is scaled on one rank",
            "the input of blocks.1.norm2 on rank 1, while the output of blocks.1.attn",
        ),
        ("dp2", "one rank has other rows", "the rows of the batch on rank 1:"),
        ("dp2", "no gradient is averaged in backward", f"the gradient of norm.bias {ALL}, {SUM} dp"),
        ("dp2.tp2", "one gradient is not averaged", f"the gradient of blocks.2.mlp.up.weight {FOUR}, {SUM} dp"),
        (
            "dp4/zero3/shard2",
            "groups are not averaged",
            f"the gradient of norm.bias {FOUR}, after its reduce_scatter over dp_shard and all_reduce over dp_rep",
        ),
        (
            "dp2/zero1",
            "updates are not gathered",
            f"embed.tokens.weight {ALL}, after the update and the all_gather over dp",
        ),
        ("dp2/zero1", "no weight decay", f"embed.tokens.weight {ALL}, after the update by AdamW"),
    ],
)
def test_a_fault_is_named(workers: WorkerPool, layout: str, fault: str, named: str) -> None:
    check(workers, "gpt2", layout, fault, named)


def test_statistics_of_one_rank_are_named(workers: WorkerPool) -> None:
    fault = "a norm has statistics of one rank"
    check(workers, "resnet", "dp2", fault, f"the output of blocks.0.norm1 {ALL}, {SUM} dp")


def check(workers: WorkerPool, model: str, layout: str, fault: str, named: str) -> None:
    results = workers.run("tests.dist.first_cases:faulty", run_of(model, layout), fault)
    result: ParityResult = results[0]
    assert not result.passed and str(result) == f"{result.verdict}; {result.first}"
    assert result.first.startswith(f"first difference: {named}"), result.first
    where = "micro-batch 2 of 2, " if "before" in fault else ""  # the others agree
    assert result.first.endswith(f" of its size ({where}step 1 of 2, in fp64)"), result.first
    assert {other.first for other in results if other is not None} == {result.first}  # every rank knows


@pytest.mark.parametrize(
    ("model", "layout", "options"),
    [
        ("gpt2", "dp2.tp2.pp2/zero3/mb2/sp", {}),
        ("gpt2", "dp3/zero1", {"accumulation": 2, "global_batch_size": 24}),
        ("gpt2", "pp2/zbv/mb2", {"checkpointing": "full"}),
        ("gpt2", "dp2/zero3", {"precision": "bf16"}),
        ("llama", "tp2/sp", {}),
        ("resnet", "tp2.pp2/mb2", {}),
    ],
)
def test_nothing_is_named_without_a_fault(
    workers: WorkerPool, model: str, layout: str, options: dict[str, Any]
) -> None:
    said, compared = workers.run("tests.dist.first_cases:searched", run_of(model, layout, **options))[0]
    assert said.startswith("first difference not found: the same 2 steps once more, in fp64"), said
    assert min(compared.values()) > 10, compared  # values, gradients and updates are seen on every rank


def test_a_module_of_ones_own(workers: WorkerPool) -> None:
    for layout in ("dp2", "dp2/zero3"):
        assert workers.run("tests.dist.first_cases:own", layout, None)[0].first == ""
        result = workers.run("tests.dist.first_cases:own", layout, 1)[0]
        named = "first difference: the input of layers.1 on rank 1, while the output of layers.0 agrees"
        assert not result.passed and result.first.startswith(named)


@pytest.mark.parametrize(
    ("kind", "layouts"),
    [
        ("both-ends", ("pp2/1f1b/mb2",)),  # one parameter in two stages
        ("masked", ("pp2/interleaved/mb2",)),  # a mask that goes through all stages
        ("routed", ("dp2",)),  # parameters without a gradient
    ],
)
def test_nothing_is_named_in_modules_of_ones_own(workers: WorkerPool, kind: str, layouts: tuple[str, ...]) -> None:
    for said in workers.run("tests.dist.first_cases:own_kinds", kind, layouts)[0]:
        assert said.startswith("passed") and said.endswith("and for statistics over a batch"), said
        assert "the same 2 steps once more, in fp64, agree with one process that takes the batch in the same" in said


def test_what_is_not_searched_says_why(workers: WorkerPool) -> None:
    run = run_of("gpt2", "dp2")
    said = workers.run("tests.dist.first_cases:searched_where_little_is_free", run)[0]
    assert said.startswith("first difference not searched: one process beside the layout takes ") and "0.0 GB" in said
    other = replace(run, engine="accelerate")
    said, _ = workers.run("tests.dist.first_cases:searched", other)[0]
    assert said == "first difference not searched: accelerate takes steps of its own"
