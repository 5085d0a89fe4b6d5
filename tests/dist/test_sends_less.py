"""Data parallelism that sends less: what it sends, what it makes of gradients, and that it claims no parity."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, product
from operator import itemgetter
from typing import Any

import pytest
import torch
from torch import nn

from paralab.engines import native
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.processes.mesh import Mesh
from tests.dist.test_communication import check_run
from tests.dist.workers import WorkerPool

STREAMING: dict[str, Any] = {"outer_optimizer": "nesterov", "outer_fragments": 2, "outer_overlap": 2}
KINDS = ["bf16", "fp16", "powersgd", "int8"]
SMALL: dict[str, Any] = {"size": "4x32x4v257", "seq_len": 16, "global_batch_size": 16}


@pytest.mark.parametrize("kind", KINDS[1:])  # the first two send alike
def test_compressed_bytes_are_the_predicted_ones(workers: WorkerPool, kind: Any) -> None:
    check_run(workers, RunConfig(**SMALL, layout=Layout.parse("dp4"), grad_compression=kind))


# A stage of the last one has a single block, and so nothing of one of the two fragments.
@pytest.mark.parametrize(
    ("layout", "options"), [("dp2/local3", {}), ("dp2.tp2/local2", {}), ("dp2.pp4/local3/mb4", STREAMING)]
)
def test_bytes_of_ranks_that_train_apart_are_the_mean_of_their_steps(
    workers: WorkerPool, layout: str, options: dict[str, Any]
) -> None:
    check_run(workers, RunConfig(**SMALL, **options, layout=Layout.parse(layout)))


def test_gradients_are_as_close_to_their_average_as_the_compression_allows(workers: WorkerPool) -> None:
    allowed = {"bf16": 2**-7, "fp16": 2**-10, "int8": 1 / 64, "powersgd": 1e-4}  # of the largest number
    for kind in KINDS:
        answers = [found for found in workers.run("tests.dist.less_cases:gradients", kind, 1, 2) if found]
        for (got, exact), (elsewhere, _) in zip(*answers, strict=True):
            for name, grad in got.items():
                torch.testing.assert_close(grad, elsewhere[name], rtol=0, atol=0)  # the same on both ranks
                error = (grad - exact[name]).abs().max() / exact[name].abs().max()
                whole = kind in ("int8", "powersgd") and grad.ndim == 1
                assert error <= (1e-6 if whole else allowed[kind]), (kind, name)
                assert kind == "powersgd" or grad.ndim == 1 or error > (2**-10 if kind == "bf16" else 0), (kind, name)


def test_powersgd_sends_later_what_it_left_out(workers: WorkerPool) -> None:
    """Steps whose gradients have more than four directions together: their sum is sent all the same."""
    steps = workers.run("tests.dist.less_cases:gradients", "powersgd", 6, 16)[0]
    sent, wanted = (sum(step[i]["0.weight"] for step in steps) for i in (0, 1))
    without = [step[0]["0.weight"] - step[1]["0.weight"] for step in steps[1:]]
    assert max(x.norm() for x in without) > 0.1 * wanted.norm()  # a step departs from its own gradient
    assert (sent - wanted).norm() < 1.5 * max(x.norm() for x in without)  # and the sum does not drift away


def test_the_outer_optimizer_is_nesterov(workers: WorkerPool) -> None:
    for answer in workers.run("tests.dist.less_cases:outer_steps", 3)[:2]:
        torch.testing.assert_close(*answer, rtol=0, atol=1e-13)


def simulated(run: RunConfig, steps: int, *, parts: Sequence[Sequence[str]], meets: Sequence[int]) -> list[nn.Module]:
    """Train as many models as there are data ranks in one process; return these, and the one that they agree on.

    parts: prefixes of the names of each fragment. meets: after which of every so many steps its outer step is taken,
    by torch's own SGD, `run.outer_overlap` steps later from the parameters that models had.
    """
    ranks, every, division = run.layout.dp, run.layout.local, resolve(run).division
    alone = resolve(replace(run, layout=Layout(), outer_optimizer="average", outer_fragments=1, outer_overlap=0))
    mesh = Mesh(Layout(), torch.device("cpu"))
    agreed = native.build(alone.context(mesh)).parts[0]
    models = [copy.deepcopy(agreed) for _ in range(ranks)]
    inner = [torch.optim.AdamW(model.parameters(), lr=run.learning_rate, weight_decay=0.0) for model in models]
    names = [[name for name, _ in agreed.named_parameters() if name.startswith(tuple(part))] for part in parts]
    outer = [
        torch.optim.SGD([agreed.get_parameter(name) for name in part], lr=0.7, momentum=0.9, nesterov=True)
        for part in names
    ]
    overlap, under_way = run.outer_overlap, [dict[str, torch.Tensor]() for _ in parts]
    mixing = 0.5 if overlap else 0.0
    for step, batch in enumerate(islice(training_batches(alone, mesh), steps), start=1):
        for rank, (model, optimizer) in enumerate(zip(models, inner, strict=True)):
            rows = batch.each(itemgetter(division.rows_of(rank)))
            optimizer.zero_grad()
            model(*rows.inputs, targets=rows.given).backward()
            optimizer.step()
        for part, meeting, after, mean in zip(names, outer, meets, under_way, strict=True):
            if step % every == after % every:
                mean |= {name: torch.stack([m.get_parameter(name).detach() for m in models]).mean(0) for name in part}
            if mean and step % every == (after + overlap) % every:
                for name in part:
                    agreed.get_parameter(name).grad = agreed.get_parameter(name).detach() - mean[name]
                meeting.step()
                for model, name in product(models, part):
                    p = model.get_parameter(name).data
                    p.copy_(mixing * p + (1 - mixing) * agreed.get_parameter(name).detach())
    return [*models, agreed]


@pytest.mark.parametrize("overlap", [0, 3])
def test_fragments_that_meet_at_different_steps_are_those_of_a_simulation(workers: WorkerPool, overlap: int) -> None:
    plain: dict[str, Any] = {
        "weight_decay": 0.0,
        "betas": (0.9, 0.999),
        "clip_norm": None,
        "lr_warmup_steps": 0,
        "precision": "fp64",
    }
    run = RunConfig(
        **SMALL,
        **plain,
        lr_schedule="constant",
        layout=Layout.parse("dp2/local5"),
        outer_optimizer="nesterov",
        outer_fragments=3,
        outer_overlap=overlap,
    )
    parts = [("blocks.0.", "blocks.3."), ("blocks.1.",), ("blocks.2.", "embed", "norm")]
    *models, together = simulated(run, 9, parts=parts, meets=[1, 3, 5])
    answers = workers.run("tests.dist.less_cases:trained_apart", run, 9)[:2]
    for model, (mine, agreed) in zip(models, answers, strict=True):
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, model.get_parameter(name).detach(), rtol=0, atol=1e-10)
            torch.testing.assert_close(agreed[name], together.get_parameter(name).detach(), rtol=0, atol=1e-10)
    apart = [not torch.equal(tensor, answers[1][0][name]) for name, tensor in answers[0][0].items()]
    assert all(apart)  # between their meetings


def test_weights_that_were_given_are_where_the_outer_optimizer_begins(workers: WorkerPool) -> None:
    run = RunConfig(**SMALL, outer_optimizer="nesterov", layout=Layout.parse("dp2/local2"))
    assert workers.run("tests.dist.less_cases:outer_begins_at_given_values", run)[:2] == [True, True]


def test_apart_for_one_step_of_sgd_is_data_parallelism_and_for_two_is_not(workers: WorkerPool) -> None:
    """The mean of parameters is linear in the gradients, where nothing is clipped."""

    def differs(layout: str) -> float:
        run = RunConfig(
            **SMALL, layout=Layout.parse(layout), precision="fp64", optimizer="sgd", learning_rate=0.1, clip_norm=None
        )
        results = [result for result in workers.run("tests.dist.cases:parity_result", run) if result]
        return max(max(result.loss_difference, result.parameter_difference) for result in results)

    assert differs("dp4/local1") < 1e-10
    assert differs("dp4/local2") > 1e-4


def test_states_of_the_outer_optimizer_are_counted(workers: WorkerPool) -> None:
    run = RunConfig(**SMALL, **STREAMING, layout=Layout.parse("dp2/local3"))
    measured, predicted = max(x for x in workers.run("tests.dist.cases:state_memory", run) if x)
    assert measured == pytest.approx(predicted, rel=0.02)


def test_the_row_claims_no_parity(workers: WorkerPool) -> None:
    run = RunConfig(**SMALL, layout=Layout.parse("dp2/local2"), steps=2, warmup=1)
    said = "not claimed: data ranks train apart for 2 steps at a time"
    assert workers.run("tests.dist.less_cases:row", run)[:2] == [(None, said, said)] * 2
