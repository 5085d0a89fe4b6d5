"""What the workers run of `paralab.library`: a kind of module under a layout, held against a loop written by hand."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from paralab import Trainer, World, parallelize, prove
from paralab.axes.blocks import blocks_of
from paralab.errors import ConfigError, DataError, LayoutError
from paralab.layout import Layout
from paralab.library.optimizer import Parameters
from paralab.processes.mesh import make_mesh
from paralab.processes.rank import Rank
from tests.dist.own_modules import DROPPING, KINDS, ROWS, SEQUENCE, WORDS, Kind, Plain

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


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, eps=1e-5)


class Signs(torch.optim.Optimizer):
    """An optimizer as people write one: element by element, and not one of torch's."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    kept = self.state[p].setdefault("mean", torch.zeros_like(p))
                    kept.mul_(0.9).add_(p.grad, alpha=0.1)
                    p.add_(torch.tanh(100 * kept), alpha=-group["lr"])


class Plainly(torch.optim.Optimizer):
    """One that asks for what a sharded tensor does not have."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(torch.ones(p.shape, dtype=p.dtype))


def two_groups(parameters: Any) -> torch.optim.Optimizer:
    """Return AdamW that lets matrices decay, and nothing else: by the names of the parameters."""
    decay = [p for name, p in parameters.named if "weight" in name and "norm" not in name]
    others = [p for name, p in parameters.named if not ("weight" in name and "norm" not in name)]
    groups = [{"params": decay, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0, "lr": 3e-3}]
    return torch.optim.AdamW(groups, lr=1e-2, eps=1e-5)


OPTIMIZERS: Mapping[str, Any] = {
    "class": torch.optim.SGD,
    "two groups": two_groups,
    "own": Signs,
    "plainly": Plainly,
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=1e-2),
    "muon": lambda parameters: torch.optim.Muon([p for p in parameters if p.ndim == 2], lr=1e-2),
}
SCHEDULERS: Mapping[str, Any] = {
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1)),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS + 1),
}


def by_hand(
    kind: Kind, parts: int = 1, *, clip_norm: float | None = None, optimizer: Any = adam, scheduler: Any = None
) -> tuple[list[float], Mapping[str, Tensor]]:
    """Train in one process as anybody would; return the losses, and the values in the end.

    parts: how many samples are together, where that matters.
    """
    module = made(kind).double()
    updates = optimizer(Parameters((n, p) for n, p in module.named_parameters() if p.requires_grad))
    schedule, losses = scheduler and scheduler(updates), []
    for batch in batches(kind):
        updates.zero_grad()
        total = 0.0
        for i in range(parts):
            rows = slice(i * ROWS // parts, (i + 1) * ROWS // parts)
            loss = _loss(kind, module, tree_map(lambda x, rows=rows: x[rows], batch)) / parts
            loss.backward()
            total += loss.item()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        updates.step()
        if schedule:
            schedule.step()
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
    return sum(loss.values(), torch.zeros(())) if isinstance(loss, dict) else loss


def in_each(rank: Rank, layouts: Iterable[str], run: Callable[[World, Layout], Any]) -> list[Any]:
    """Return what run gives under each layout, on the ranks that are in it; {} on the others."""
    found = []
    for layout in map(Layout.parse, layouts):
        if rank.rank < layout.world_size:
            found.append(run(World(rank.rank, layout.world_size, rank.device), layout))
        else:
            make_mesh(layout, rank.device)
            found.append({})
    return found


def trainer_of(kind: Kind, layout: Layout, world: World, module: nn.Module | None = None, **more: Any) -> Trainer:
    options = dict(kind.options) | ({"example": batches(kind)[0]} if layout.pp > 1 else {})
    options |= {"optimizer": adam, "precision": "fp64"} | more
    return parallelize(module or made(kind), layout, world=world, loss=kind.loss, **options)


def holds(rank: Rank, name: str, layouts: tuple[str, ...], more: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return, for each layout, how far it is from one process."""
    return in_each(rank, layouts, lambda world, layout: _held(world, KINDS[name], layout, more))


def _held(world: World, kind: Kind, layout: Layout, more: Mapping[str, Any]) -> dict[str, Any]:
    every, module = batches(kind), made(kind)
    start = {name: x.clone() for name, x in module.state_dict().items()}
    trainer = trainer_of(kind, layout, world, module, **more)
    began = trainer.state_dict()
    proof = prove(trainer, every)
    parts = trainer.work.division.chunks * layout.dp if kind.apart else 1
    found = _against(trainer, every, *by_hand(kind, parts, clip_norm=more.get("clip_norm")))
    kept = began.keys() == start.keys() and all(torch.equal(began[n], x.to(began[n])) for n, x in start.items())
    return found | {"proof": str(proof), "passed": proof.passed, "kept": kept}


def _against(trainer: Trainer, every: list[Any], losses: list[float], end: Mapping[str, Tensor]) -> dict[str, Any]:
    """Take the steps; return the largest differences of losses (relative) and of values from those by hand."""
    steps = [trainer.step(batch) for batch in trainer.shard(every)]
    ended = trainer.state_dict()
    compared = [n for n, x in end.items() if x.is_floating_point() and "running" not in n]
    return {
        "loss": max(abs(a.loss - b) / abs(b) for a, b in zip(steps, losses, strict=True)),
        "values": max((ended[n] - end[n]).abs().max().item() for n in compared),
    }


def optimized(rank: Rank, layouts: tuple[str, ...], optimizer: str, scheduler: str | None) -> list[dict[str, Any]]:
    """Return how far an optimizer is from itself in one process, or with what words it is refused."""
    own: dict[str, Any] = {"optimizer": OPTIMIZERS[optimizer], "scheduler": SCHEDULERS.get(scheduler or "")}

    def run(world: World, layout: Layout) -> dict[str, Any]:
        kind = KINDS["plain"]
        try:
            trainer = trainer_of(kind, layout, world, **own)
            return _against(trainer, batches(kind), *by_hand(kind, **own))
        except (ConfigError, LayoutError) as error:
            return {"refused": str(error)}

    return in_each(rank, layouts, run)


def dropped(rank: Rank, layouts: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return what a layout drops on this rank, the losses with and without checkpointing, and what is said of it."""
    kind = DROPPING

    def run(world: World, layout: Layout) -> dict[str, Any]:
        every, losses, kept = batches(kind), dict[str, list[float]](), list[list[bool]]()
        for checkpointing in ("none", "full"):
            trainer = trainer_of(kind, layout, world, checkpointing=checkpointing)
            block = next(iter(blocks_of(trainer.engine.parts[0]).values()))
            losses[checkpointing] = []
            for batch in trainer.shard(every):
                losses[checkpointing].append(trainer.step(batch).loss)
                kept.append((cast(Tensor, block.last) > 0).tolist())
        try:
            said = str(prove(trainer, every))
        except ConfigError as error:
            said = str(error)
        return {"losses": losses, "kept": kept, "last": kept[-1], "said": said}

    return in_each(rank, layouts, run)


class DropsInForward(Plain):
    """Drops with a function, of which no module tells."""

    def forward(self, words: Tensor) -> Tensor:
        return super().forward(words) + 0 * functional.dropout(self.head.weight.sum(), 0.5)


def said_of_functions(rank: Rank, layouts: tuple[str, ...]) -> list[str]:
    """Return what is said under each layout of a module that drops in its forward."""

    def run(world: World, layout: Layout) -> str:
        torch.manual_seed(0)
        trainer = trainer_of(KINDS["plain"], layout, world, DropsInForward())
        try:
            return str(prove(trainer, batches(KINDS["plain"])))
        except ConfigError as error:
            return str(error)

    return in_each(rank, layouts, run)


def proofs(rank: Rank, layouts: tuple[str, ...], more: Mapping[str, Any]) -> list[Any]:
    """Return the proof of the plain module under each layout with options of `parallelize`, and then some losses."""
    kind = KINDS["plain"]

    def run(world: World, layout: Layout) -> tuple[str, bool, list[float]]:
        trainer = trainer_of(kind, layout, world, **more)
        proof = prove(trainer, batches(kind))
        return str(proof), proof.passed, [trainer.step(batch).loss for batch in trainer.shard(batches(kind))]

    return in_each(rank, layouts, run)


def optimized_by_muon(rank: Rank, layouts: tuple[str, ...]) -> list[dict[str, Any]]:
    """Do the same with Muon, which multiplies in bf16, in fp64 in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)
        return optimized(rank, layouts, "muon", None)


def epochs(rank: Rank, layouts: tuple[str, ...]) -> list[Any]:
    """Return the order of three epochs of a shuffling loader, beside the order that it has alone, and the losses."""
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(WORDS, (SEQUENCE,), generator=generator) for _ in range(3 * ROWS)]

    def run(world: World, layout: Layout) -> dict[str, Any]:
        trainer = trainer_of(DROPPING, layout, world, made(DROPPING))
        loader = DataLoader(TensorDataset(torch.stack(rows), torch.stack(rows)), batch_size=ROWS, shuffle=True)
        orders: dict[str, list[list[int]]] = {"alone": [], "training": []}
        for name, losses in (("alone", None), ("training", list[float]())):
            torch.manual_seed(5)
            for _ in range(3):
                seen: list[int] = []
                for batch in trainer.shard(_noted(loader, seen)) if losses is not None else _noted(loader, seen):
                    if losses is not None:
                        losses.append(trainer.step(batch).loss)
                orders[name].append(seen)
        return orders | {"losses": losses}

    return in_each(rank, layouts, run)


def _noted(loader: Any, seen: list[int]) -> Iterator[Any]:
    for words, targets in loader:
        seen += words.sum(1).tolist()
        yield words, targets


def mistaken(rank: Rank, mistake: str) -> str:
    """Return what is said of batches that do not fit; the same on every rank, so that none waits for another."""
    kind = KINDS["bare"]

    def loader(world: World) -> Iterable[Any]:
        generator = torch.Generator().manual_seed(0)
        data = TensorDataset(torch.randn(22, 5, generator=generator), torch.randn(22, 3, generator=generator))
        if mistake == "a sampler":
            return DataLoader(data, batch_size=4, sampler=DistributedSampler(data, world.size, world.rank))
        if mistake == "an order of its own":
            order = torch.Generator().manual_seed(world.rank)
            return DataLoader(data, batch_size=4, shuffle=True, generator=order)
        batches = list(DataLoader(data, batch_size=4 if mistake != "a last one that does not divide" else 3))
        return iter(batches[:2] if mistake == "an early end" and world.rank == 1 else batches)

    def run(world: World, layout: Layout) -> str:
        trainer = trainer_of(kind, layout, world, precision="fp32")
        try:
            return f"{sum(1 for batch in trainer.shard(loader(world)) if trainer.step(batch))} steps"
        except DataError as error:
            return str(error)

    return in_each(rank, ("dp2",), run)[0] or ""


def values_and_places(rank: Rank, layouts: tuple[str, ...]) -> list[Any]:
    """Return whether the values are kept to the bit in fp32, and on which device a function made the module."""
    places: list[str] = []

    def make() -> nn.Module:
        module = made(KINDS["tied"])
        places.append(module.get_parameter("embed.weight").device.type)
        return module

    def run(world: World, layout: Layout) -> dict[str, Any]:
        places.clear()
        want = made(KINDS["tied"]).state_dict()
        options: Any = {"optimizer": adam, "example": batches(KINDS["tied"])[0], **KINDS["tied"].options}
        trainer = parallelize(make, layout, world=world, loss=KINDS["tied"].loss, **options)
        got = trainer.state_dict()
        return {"kept": got.keys() == want.keys() and all(torch.equal(got[n], want[n]) for n in want), "on": [*places]}

    return in_each(rank, layouts, run)


def drawn(rank: Rank, layouts: tuple[str, ...]) -> list[Any]:
    """Return whether values that `initialise` draws are the same whole tensors under every layout, and from where."""
    alone = KINDS["plain"]

    def initialise(name: str, tensor: Tensor, generator: torch.Generator) -> None:
        tensor.normal_(std=0.1, generator=generator) if tensor.ndim > 1 else tensor.fill_(len(name))

    def run(world: World, layout: Layout) -> dict[str, Tensor]:
        with torch.device("meta"):
            module = Plain()
        trainer = trainer_of(alone, layout, world, module, precision="fp32", initialise=initialise)
        return {name: x.sum(dtype=torch.float64) for name, x in trainer.state_dict().items()}

    return in_each(rank, layouts, run)
