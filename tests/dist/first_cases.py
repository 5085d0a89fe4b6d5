"""What the workers run where a fault is put into a layout on purpose, and what differs first is named."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paralab import World, parallelize
from paralab.axes import compose
from paralab.axes.context import BuildContext
from paralab.axes.data import DataAxis, ddp, zero
from paralab.axes.initialise import local
from paralab.axes.pipeline import shared
from paralab.axes.tensor import layers
from paralab.data.dataset import Batch
from paralab.engines import native
from paralab.layout import Layout
from paralab.library import prove as library_prove
from paralab.options.config import RunConfig
from paralab.parity import first
from paralab.parity.beside import BACKWARDS, FORWARD, UPDATED, Beside, Pair
from paralab.parity.first import first_difference
from paralab.parity.notes import Notes
from paralab.parity.prove import prove
from paralab.parity.reference import Feed, References
from paralab.parity.result import ParityResult
from paralab.planning import batches as planning_batches
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh, make_mesh
from paralab.processes.rank import Rank
from tests.dist import library_cases

Patch = pytest.MonkeyPatch
_references, _reduce_between_groups = References(), zero.reduce_between_groups


def searched(rank: Rank, run: RunConfig) -> tuple[str, Counter] | None:
    """Search a layout that has no fault; return what is said, and how much was compared, by rank and phase on rank 0.

    None on ranks outside of it.
    """
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return None
    compared: Counter = Counter()
    step = Beside.step

    def counted(self: Beside, batch: Batch, notes: list[Notes]) -> list[Pair]:
        pairs = step(self, batch, notes)
        compared.update((pair.rank, pair.phase) for pair in pairs if pair.phase in (FORWARD, BACKWARDS, UPDATED))
        return pairs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Beside, "step", counted)
        return first_difference(work, mesh, feed=training_batches, steps=2), compared


def searched_where_little_is_free(rank: Rank, run: RunConfig) -> str | None:
    """Search where no memory is free; None on ranks outside of the layout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first, "memory_available_bytes", lambda: 1)
        found = searched(rank, run)
    return found[0] if found is not None else None


def faulty(rank: Rank, run: RunConfig, fault: str) -> ParityResult | None:
    """Prove a layout that has a fault; None on ranks outside of it."""
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return None
    want = _references.get(work, mesh)
    with pytest.MonkeyPatch.context() as patch:
        FAULTS[fault](patch)
        return prove(work, mesh, want, steps=2)


# --- faults of parts, once they are built


def _in_parts(change: Callable[[nn.Module, BuildContext], None], needs: str | None = None) -> Callable[[Patch], None]:
    """Return what changes the parts, of those with a module that it needs, of every layout but that of one process.

    That is the reference.
    """
    build = compose.build_part

    def put(patch: Patch) -> None:
        def build_with_fault(part: nn.Module, context: BuildContext) -> None:
            build(part, context)
            if context.layout.world_size > 1 and (needs is None or needs in dict(part.named_modules())):
                change(part, context)

        patch.setattr(compose, "build_part", build_with_fault)

    return put


def _terms_not_summed(part: nn.Module, context: BuildContext) -> None:
    row: Any = part.get_submodule("blocks.1.attn.proj")
    row._forward_pre_hooks.clear()
    row._forward_hooks.clear()
    row.forward = lambda x: F.linear(x, row.weight.to_local(), row.bias.to_local())


def _gradient_of_input_not_summed(part: nn.Module, context: BuildContext) -> None:
    column: Any = part.get_submodule("blocks.1.mlp.up")
    column._forward_pre_hooks.clear()
    column._forward_hooks.clear()
    column.forward = lambda x: F.linear(x, column.weight.to_local(), column.bias.to_local())


def _wrong_piece(part: nn.Module, context: BuildContext) -> None:
    if context.mesh.rank("tp") == 1:
        weight = local(part.get_parameter("blocks.0.mlp.up.weight")).detach()
        weight.copy_(weight.roll(1, 0))


def _stale_activation(part: nn.Module, context: BuildContext) -> None:
    if context.mesh.rank("pp") == 0:
        return
    seen: list[Any] = []

    def the_one_before(_: nn.Module, args: Any) -> Any:
        seen.append(tuple(x.detach().clone() for x in args))
        return seen[-2] if len(seen) % 2 == 0 else args

    part.register_forward_pre_hook(the_one_before)


def _stale_gradient(part: nn.Module, context: BuildContext) -> None:
    seen: list[Tensor] = []

    def the_one_before(grad: Tensor) -> Tensor:
        seen.append(grad.clone())
        return seen[-2] if len(seen) % 2 == 0 else grad

    last = part.get_submodule("blocks.1")
    last.register_forward_hook(lambda _, args, out: out.register_hook(the_one_before) and None)


def _statistics_of_one_rank(part: nn.Module, context: BuildContext) -> None:
    norm: Any = next(m for name, m in part.named_modules() if name == "blocks.0.norm1")
    norm.all_reduce, norm.ranks = (lambda tensor, op: tensor * 2), 2


def _scaled_between_modules(part: nn.Module, context: BuildContext) -> None:
    block: Any = part.get_submodule("blocks.1")

    def forward(x: Tensor) -> Tensor:
        x = 1.01 * x + block.attn(block.norm1(x)) if context.mesh.rank("dp") == 1 else x + block.attn(block.norm1(x))
        return x + block.mlp(block.norm2(x))

    block.forward = forward


# --- faults of a step


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _norms_not_summed(patch: Patch) -> None:
    align = layers.align_gradients

    def all_but_norms(parts: list[nn.Module], **named: Any) -> None:
        kept = {p: p.grad for part in parts for n, p in part.named_parameters() if n == "blocks.0.norm2.weight"}
        align(parts, **named)
        for parameter, grad in kept.items():
            parameter.grad = grad

    patch.setattr(layers, "align_gradients", all_but_norms)


def _one_not_averaged(patch: Patch) -> None:
    average = ddp.average_gradients

    def all_but_one(held: list[tuple[str, Tensor]], **named: Any) -> None:
        one = dict(held)["blocks.2.mlp.up.weight"]
        assert one.grad is not None
        was = local(one.grad).clone()
        average(held, **named)
        local(one.grad).copy_(was)

    patch.setattr(ddp, "average_gradients", all_but_one)


def _other_rows(patch: Patch) -> None:
    load = planning_batches.batches

    def with_rows_of_another(*args: Any, dp_rank: int, **named: Any) -> Iterator[Batch]:
        rows = load(*args, dp_rank=dp_rank, **named)
        return (batch.each(lambda x: x.flip(0)) for batch in rows) if dp_rank == 1 else rows

    patch.setattr(planning_batches, "batches", with_rows_of_another)


def _no_weight_decay(patch: Patch) -> None:
    update = native.NativeEngine._update

    def without(self: Any) -> None:
        if self.context.layout.world_size > 1:
            for group in self.optimizer.param_groups:
                group["weight_decay"] = 0.0
        update(self)

    patch.setattr(native.NativeEngine, "_update", without)


FAULTS: dict[str, Callable[[Patch], None]] = {
    "terms of a row layer are not summed": _in_parts(_terms_not_summed, "blocks.1.attn.proj"),
    "the gradient of an input is not summed": _in_parts(_gradient_of_input_not_summed),
    "a column layer has the wrong piece": _in_parts(_wrong_piece),
    "a stage gets the activation before": _in_parts(_stale_activation),
    "a stage gets the gradient before": _in_parts(_stale_gradient, "blocks.1"),
    "a norm has statistics of one rank": _in_parts(_statistics_of_one_rank),
    "a residual is scaled on one rank": _in_parts(_scaled_between_modules),
    "gradients of norms are not summed": _norms_not_summed,
    "one gradient is not averaged": _one_not_averaged,
    "no gradient is averaged in backward": lambda patch: patch.setattr(
        DataAxis, "micro_batch", lambda self, model, *, last: ddp.unsynchronised(model)
    ),
    "groups are not averaged": lambda patch: patch.setattr(
        zero, "reduce_between_groups", lambda model, *, now: _reduce_between_groups(model, now=False)
    ),
    "tied gradients are not exchanged": lambda patch: patch.setattr(shared.SharedGradients, "__call__", _nothing),
    "updates are not gathered": lambda patch: patch.setattr(zero.ShareUpdates, "__call__", _nothing),
    "one rank has other rows": _other_rows,
    "the norm counts an axis twice": lambda patch: patch.setattr(native, "copies", lambda p, mesh: 1),
    "no weight decay": _no_weight_decay,
}


# --- a module of a program's own


class Own(nn.Module):
    """Two layers and a head. noise: what a rank adds between them, from a generator that is not seeded alike."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.scale = nn.LayerNorm(8)
        self.head = nn.Linear(8, 1)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) * (1 + self.noise)
        return self.head(self.scale(x))


def own(rank: Rank, layout: str, faulty_rank: int | None) -> ParityResult | None:
    """Prove a module of one's own that computes something else on one rank; None on ranks outside of the layout."""
    split = Layout.parse(layout)
    if rank.rank >= split.world_size:
        make_mesh(split, rank.device)
        return None
    torch.manual_seed(0)
    module = Own(0.01 if rank.rank == faulty_rank else 0.0)
    world = World(rank.rank, split.world_size, rank.device)
    trainer = parallelize(module, split, world=world, loss=F.mse_loss)
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    return library_prove.prove(trainer, [(x, x.sum(1, keepdim=True))], steps=2)


def own_kinds(rank: Rank, name: str, layouts: tuple[str, ...]) -> list[str]:
    """Search a kind of module that has no fault under some layouts; return what is said, "" on ranks outside of one."""

    def search(result: ParityResult, work: Work, mesh: Mesh, *, feed: Feed, steps: int) -> ParityResult:
        return replace(result, first=first_difference(work, mesh, feed=feed, steps=2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library_prove, "named", search)
        found = library_cases.holds(rank, name, layouts, {})
    return [x["proof"] if x else "" for x in found]
