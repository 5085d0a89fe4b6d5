"""What the workers run of `paralab.library`: a kind of module under a layout, held against a loop written by hand."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from paralab import World, parallelize, prove
from paralab.layout import Layout
from paralab.processes import cluster
from paralab.processes.cluster import Rank
from tests.dist.own_modules import KINDS, ROWS, Kind

STEPS = 3


def batches(kind: Kind, count: int = STEPS) -> list[Any]:
    """Return global batches, in fp64 where they are floating-point."""
    generator = torch.Generator().manual_seed(1)
    return [tree_map(_double, kind.batch(generator)) for _ in range(count)]


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def made(kind: Kind) -> nn.Module:
    """Return the module with the values that every process gives it."""
    torch.manual_seed(0)
    return kind.make()


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, eps=1e-5)


def by_hand(kind: Kind, parts: int) -> tuple[list[float], Mapping[str, Tensor]]:
    """Train in one process as anybody would; return the losses, and the values in the end.

    parts: how many samples are together, where that matters.
    """
    module = made(kind).double()
    optimizer = optimizer_of([p for p in module.parameters() if p.requires_grad])
    losses = []
    for batch in batches(kind):
        optimizer.zero_grad()
        total = 0.0
        for i in range(parts):
            rows = slice(i * ROWS // parts, (i + 1) * ROWS // parts)
            loss = _loss(kind, module, tree_map(lambda x, rows=rows: x[rows], batch)) / parts
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    return losses, {name: x.detach() for name, x in module.state_dict().items()}


def _loss(kind: Kind, module: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch if kind.loss is not None else (batch, None)
    if isinstance(inputs, Mapping):
        out = module(**inputs)
    else:
        out = module(*inputs) if isinstance(inputs, tuple) else module(inputs)
    if kind.loss is None:
        return getattr(out, "loss", out)
    loss = kind.loss(out, targets)
    return sum(loss.values()) if isinstance(loss, dict) else loss


def differences(rank: Rank, name: str, layouts: tuple[str, ...], more: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    kind = KINDS[name]
    for text in layouts:
        layout = Layout.parse(text)
        if rank.rank >= layout.world_size:
            cluster.make_mesh(layout, rank.device)
            yield {}
            continue
        yield _differences(World(rank.rank, layout.world_size, rank.device), kind, layout, more)


def holds(rank: Rank, name: str, layouts: tuple[str, ...], more: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return, for each layout, how far it is from one process; {} on ranks outside of it."""
    return list(differences(rank, name, layouts, more))


def _differences(world: World, kind: Kind, layout: Layout, more: Mapping[str, Any]) -> dict[str, Any]:
    every, module = batches(kind), made(kind)
    start = {name: x.clone() for name, x in module.state_dict().items()}
    options = dict(kind.options) | ({"example": every[0]} if layout.pp > 1 else {}) | dict(more)
    trainer = parallelize(
        module, layout, world=world, loss=kind.loss, optimizer=optimizer_of, precision="fp64", **options
    )
    began = trainer.state_dict()
    proof = prove(trainer, every)
    steps = [trainer.step(batch) for batch in trainer.shard(every)]
    losses, end = by_hand(kind, trainer.work.division.chunks * layout.dp if kind.apart else 1)
    ended = trainer.state_dict()
    return {
        "proof": str(proof),
        "passed": proof.passed,
        "kept": began.keys() == start.keys() and all(torch.equal(began[n], x.to(began[n])) for n, x in start.items()),
        "loss": max(abs(a.loss - b) / abs(b) for a, b in zip(steps, losses, strict=True)),
        "values": max(
            (ended[n] - x).abs().max().item() for n, x in end.items() if x.is_floating_point() and "running" not in n
        ),
        "whole": {n: x for n, x in ended.items() if not x.is_floating_point()},
    }
