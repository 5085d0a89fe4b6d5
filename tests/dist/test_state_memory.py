"""The measured peak of parameters, gradients and optimizer states against the arithmetic of ZeRO."""

from dataclasses import replace
from typing import Any

import pytest

from paralab.axes.held import state_bytes
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from tests.dist.cases import ALWAYS
from tests.dist.workers import WorkerPool

GPT2 = [
    "dp1",
    "dp4",
    "dp4/zero1",
    "dp4/zero2",
    "dp4/zero3",
    "dp4/zero1/shard2",
    "dp4/zero3/shard2",
    pytest.param("dp4/zero1/offload-optimizer", marks=ALWAYS),  # gradients that are copied to the host
    "dp4/zero3/offload-parameters",
    "tp4",
    "dp2.cp2/zero3",
    "pp4/1f1b/mb4",
    "tp2.pp2/1f1b/mb2",
]


@pytest.mark.parametrize("layout", GPT2)
def test_measured_state_is_the_predicted_one(workers: WorkerPool, layout: str, model: str = "gpt2") -> None:
    run = RunConfig(model=model, layout=Layout.parse(layout), global_batch_size=8, seq_len=32)
    measured, predicted = max(x for x in workers.run("tests.dist.cases:state_memory", run) if x)
    assert measured == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize("layout", ["dp4/zero3", "tp2.pp2/1f1b/mb2"])
def test_measured_state_of_an_untied_model_is_the_predicted_one(workers: WorkerPool, layout: str) -> None:
    test_measured_state_is_the_predicted_one(workers, layout, "llama")


def test_whole_gradients_are_counted_in_the_precision_used(workers: WorkerPool) -> None:
    run = RunConfig(layout=Layout.parse("dp4/zero3"), global_batch_size=8, seq_len=32, precision="bf16")
    measured, predicted = max(x for x in workers.run("tests.dist.cases:state_memory", run) if x)
    assert measured == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("layout", ["dp4", "dp4/zero1", "tp4", "pp2/1f1b/mb2", "dp2.tp2/zero1"])
def test_states_are_predicted_to_the_byte(workers: WorkerPool, layout: str, optimizer: Any) -> None:
    run = RunConfig(
        layout=Layout.parse(layout), size="2x64x4v257", global_batch_size=8, seq_len=16, optimizer=optimizer
    )
    measured, predicted = max(x for x in workers.run("tests.dist.cases:state_memory", run) if x)
    assert measured == predicted


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("layout", ["dp4/zero3", "dp4/zero2/shard2", "dp2.tp2/zero3"])
def test_what_the_optimizer_keeps_of_shards_is_predicted_to_the_byte(
    workers: WorkerPool, layout: str, optimizer: Any
) -> None:
    run = RunConfig(
        layout=Layout.parse(layout), size="2x64x4v257", global_batch_size=8, seq_len=16, optimizer=optimizer
    )
    reports = [found[0] for found in workers.run("tests.dist.cases:looked_inside", run) if found]
    assert max(report.rest["optimizer"] for report in reports) == state_bytes(resolve(run)).optimizer


# A tied embedding and an output layer of its own, experts, gradients that a micro-batch before has left.
@pytest.mark.parametrize(
    ("model", "size", "layout", "accumulation"),
    [
        ("llama", "2x64x4v257", "dp4/zero3", 2),
        ("gpt2", "2x64x4v257", "dp4/zero3", 1),
        ("mixtral", "2x32x8/4e8/2f24v257", "dp4.ep2/zero3", 2),
        ("gpt2", "2x64x4v257", "dp2.tp2/zero3", 2),
        pytest.param("llama", "4x64x4v257", "dp2.pp2/zero2/mb4", 1, marks=ALWAYS),  # gradients of a whole stage
        ("llama", "2x64x4v257", "dp4/zero2/shard2", 2),
        ("mixtral", "2x32x8/4e8/2f24v257", "dp8.ep2/zero2/shard4/offload-parameters", 1),
    ],
)
def test_the_peak_of_sharded_states_is_predicted_to_the_byte(
    workers: WorkerPool, model: str, size: str, layout: str, accumulation: int
) -> None:
    of_batch: dict[str, Any] = {"global_batch_size": 8, "seq_len": 16, "accumulation": accumulation}
    run = RunConfig(model=model, size=size, layout=Layout.parse(layout), **of_batch)
    measured, predicted = max(x for x in workers.run("tests.dist.cases:state_memory", run) if x)
    assert measured == predicted


def test_ranks_of_a_launcher_refuse_together_what_does_not_fit_into_one_machine(workers: WorkerPool) -> None:
    run = RunConfig(layout=Layout.parse("dp8"), size="tiny")
    much, little = 10**9, 10**5
    other_ranks_see_less = [much, little, little, little] * 2  # at their own moment, which counts for nothing
    assert workers.run("tests.dist.cases:refusal", run, other_ranks_see_less) == [None] * 8
    small_machine = [much] * 4 + [little] + [much] * 3
    said = workers.run("tests.dist.cases:refusal", run, small_machine)
    assert len(set(said)) == 1
    assert "takes 4 x (0.0 GB of parameters, gradients and optimizer states), 0.0 GB in all; 0.0 GB" in said[0]
    assert workers.run("tests.dist.cases:refusal", replace(run, force=True), small_machine) == [None] * 8
