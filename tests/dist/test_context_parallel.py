"""Context parallelism computes what one process computes, and sends what it says.

Held to 1e-10 in fp64, where a wrong position, a lost term of the ring or a mean over too few ranks has nowhere to hide.
"""

from typing import Any

import pytest
from torch import Tensor

from paralab.axes.context_parallel import ContextAxis, local, ring
from paralab.axes.data import ddp
from paralab.layout import Layout
from paralab.models.sequence import Sequence
from paralab.options.config import RunConfig
from tests.dist.cases import SHALLOW
from tests.dist.test_communication import check_run
from tests.dist.workers import WorkerPool
from tests.tiny import TINY


def check(workers: WorkerPool, model: str, layout: str, **options: Any) -> None:
    """Train a case and one process, and compare; then compare what a step sends with what was predicted."""
    usual: dict[str, Any] = {"precision": "fp64", "global_batch_size": 8, "steps": 20}
    run = RunConfig(
        **usual | TINY[model] | SHALLOW.get(model, {}) | options,
        layout=Layout.parse(layout),
    )
    result = workers.run("tests.dist.cases:parity_result", run)[0]
    assert result.passed, result
    check_run(workers, run)


# First the one that is always run: over four ranks sums of gradients travel on from a rank that has added to them.
@pytest.mark.parametrize("layout", ["cp4", "cp2", "dp2.cp2", "cp4/ulysses", "cp8"])
def test_gpt2(workers: WorkerPool, layout: str) -> None:
    check(workers, "gpt2", layout)


# Chosen by pairs: each style with each other axis and each stage of ZeRO.
@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("gpt2", "dp2.cp2/zero1"),
        ("gpt2", "cp2/zero2/ulysses"),
        ("gpt2", "cp2.tp2/sp/ulysses"),
        ("gpt2", "cp2.pp2/mb2"),
        ("gpt2", "cp2.pp2/zbv/mb2/ulysses"),
        ("llama", "cp4/ulysses"),
        ("llama", "dp2.cp2/zero3/ulysses"),
        ("llama", "cp2.tp2/sp"),
        ("llama", "cp2.tp2.pp2/zbv/mb2"),
        ("llama", "cp4.pp2/zero3/mb2"),
        ("mixtral", "cp4/ulysses"),
        ("dit", "cp2"),
        ("dit", "cp4/ulysses"),
        ("dit", "cp2.pp2/zero-bubble/mb2"),
    ],
)
def test_with_other_axes(workers: WorkerPool, model: str, layout: str) -> None:
    check(workers, model, layout)


def _terms_of_others_lost(patch: pytest.MonkeyPatch) -> None:
    """Have a rank not add to the gradients of keys and values of other ranks."""
    right = local.backward

    def wrong(*tensors: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
        grad_q, grad_k, grad_v = right(*tensors, causal=causal)
        return (grad_q, grad_k, grad_v) if causal else (grad_q, 0 * grad_k, 0 * grad_v)

    patch.setattr(local, "backward", wrong)


def _stale(patch: pytest.MonkeyPatch) -> None:
    """Have a rank go on with the keys and values that it sent."""
    right = ring.Passing.wait

    def wrong(self: ring.Passing) -> Tensor:
        right(self)
        return self.sent

    patch.setattr(ring.Passing, "wait", wrong)


def _positions_from_zero(patch: pytest.MonkeyPatch) -> None:
    """Have each rank count positions from 0."""
    positions = Sequence.own_positions
    patch.setattr(Sequence, "own_positions", lambda self, x, start=0: positions(Sequence(), x, start=start))


def _mean_over_data_ranks(patch: pytest.MonkeyPatch) -> None:
    """Have the loss be a mean over data ranks alone."""
    patch.setattr(ContextAxis, "loss_copies", lambda self, layout: 1)


def _gradients_of_one_rank(patch: pytest.MonkeyPatch) -> None:
    """Have gradients be averaged over data ranks alone."""
    patch.setattr(ddp, "replica_dim", lambda layout: "dp")
    patch.setattr(ddp, "replicas", lambda layout: layout.dp)


# Each fault, and what then is named as the first thing that differs.
FAULTS = {
    "terms of others lost": (_terms_of_others_lost, "the gradient of the input of blocks.3.attn.attend"),
    "stale keys and values": (_stale, "the output of blocks.0.attn.attend"),
    "positions from zero": (_positions_from_zero, "the input of blocks.0.attn.attend"),
    "mean over data ranks": (_mean_over_data_ranks, "the loss"),
    "gradients of one rank": (_gradients_of_one_rank, "the gradient of head.weight"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_breaks_it_is_seen(workers: WorkerPool, fault: str) -> None:
    usual: dict[str, Any] = {"precision": "fp64", "global_batch_size": 8, "steps": 20}
    options = usual | TINY["llama"] | SHALLOW["llama"]
    run = RunConfig(**options, layout=Layout.parse("dp2.cp2"))
    result = workers.run("tests.dist.cases:parity_with_fault", run, f"{__name__}:{FAULTS[fault][0].__name__}")[0]
    assert not result.passed and result.loss_difference > 1e-6
    assert result.first.startswith(f"first difference: {FAULTS[fault][1]}"), result.first


# SGD, because the step of Adam is the same whatever factor its gradients carry. The norm before clipping is above 1.
BITES = {"optimizer": "sgd", "learning_rate": 0.1, "clip_norm": 0.05}


# First one that is always run: a ring in bf16, whose gradients of keys and values travel in fp32.
@pytest.mark.parametrize(
    ("model", "layout", "options"),
    [
        ("llama", "cp2", {"precision": "bf16"}),
        ("llama", "dp2.cp2.tp2/zero3/sp", {"precision": "fp32"}),
        ("gpt2", "cp2", {"precision": "fp32"}),
        ("gpt2", "dp2.cp2/zero3/ulysses", {"precision": "bf16"}),
        ("gpt2", "dp2.cp2", BITES | {"accumulation": 2}),
        ("llama", "cp2.pp2/zero1/mb2", BITES | {"checkpointing": "full"}),
    ],
)
def test_options(workers: WorkerPool, model: str, layout: str, options: dict[str, Any]) -> None:
    check(workers, model, layout, **options)
