"""Prove that a training loop of a program's own computes what one process computes: nothing is wrapped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paralab.axes.initialise import local, local_slices
from paralab.errors import ConfigError
from paralab.library.values import digest
from paralab.library.world import World
from paralab.parity.movement import Compared, by_element, compare, over_pieces
from paralab.parity.result import ParityResult
from paralab.parity.tolerances import NOISE, TOLERANCES

Train = Callable[[nn.Module], Sequence[float]]


@dataclass(frozen=True)
class _Trained:
    """Losses of each step, and parameters of whole shapes by name, before and after the steps."""

    losses: list[float]
    start: Mapping[str, Tensor]
    end: Mapping[str, Tensor] = field(default_factory=dict)


def prove_training(train: Train, reference: Train, *, model: Callable[[], nn.Module], world: World) -> ParityResult:
    """Compare a training loop over several processes with one of a single process. Collective.

    train(module) trains the module it is given, in place, over all processes, in whatever way it likes (DDP, FSDP2,
    DTensor, loops of one's own), and returns the loss of the global batch of each step. reference(module) does the same
    steps in one process; it is called on rank 0 alone. Both get the module that model() makes, with the same values.
    Parameters are compared by their names in that module: a wrapper may stand around it, or shard it in place. A check
    in fp64, model=lambda: Net().double(), leaves no room for rounding.

    Returns: the largest differences of the losses and of the parameters, and whether they are within tolerance.
    Raises: ConfigError where the loops took different numbers of steps, or model() makes different modules.
    """
    torch.manual_seed(0)
    module = model()
    start = {name: p.detach().cpu().clone() for name, p in module.named_parameters()}
    want = _reference(reference, model, digest(module), start, world)
    losses = [float(loss) for loss in train(module)]
    if len(losses) != len(want.losses):
        raise ConfigError(
            f"the training took {len(losses)} steps and its reference {len(want.losses)}: return the loss of each "
            "step, and take as many in both"
        )
    return _judged(module, losses, want, world)


def _reference(
    reference: Train, model: Callable[[], nn.Module], made: str, start: Mapping[str, Tensor], world: World
) -> _Trained:
    """Train the reference on rank 0; return what it gave on every rank. Collective."""
    sent: list[_Trained | str] = [""]
    if world.is_main:
        torch.manual_seed(0)
        alone = model()
        if digest(alone) != made:
            raise ConfigError("model() makes another module when it is called again: make the same one each time")
        with torch.no_grad():
            for name, parameter in alone.named_parameters():
                parameter.copy_(start[name])
        losses = [float(loss) for loss in reference(alone)]
        sent = [_Trained(losses, start, {name: p.detach().cpu().clone() for name, p in alone.named_parameters()})]
    if world.size > 1:
        dist.broadcast_object_list(sent, src=0)
    assert isinstance(sent[0], _Trained)
    return sent[0]


def _judged(module: nn.Module, losses: list[float], want: _Trained, world: World) -> ParityResult:
    double = all(p.dtype == torch.float64 for p in module.parameters())
    tolerance = TOLERANCES["fp64" if double else "fp32"]
    moved = max((end - want.start[name]).abs().max().item() for name, end in want.end.items())
    pieces: list[Compared] = []
    for name, parameter in module.named_parameters():
        piece = local(parameter.detach()).cpu()
        if piece.numel() and name in want.end:
            pieces.append(
                compare(
                    name,
                    piece,
                    where=local_slices(parameter),
                    start=want.start[name],
                    end=want.end[name],
                    noise=NOISE["adamw"] * moved,
                    steps=len(losses),
                    tolerance=tolerance.parameters,
                    measure=by_element,
                )
            )
    every: list[list[Compared]] = [pieces]
    if world.size > 1:
        every = [[] for _ in range(world.size)]
        dist.all_gather_object(every, pieces)
    pieces = [piece for of_rank in every for piece in of_rank]
    differences = over_pieces(pieces, by_element)
    difference, worst = max((value, name) for name, value in differences.items()) if differences else (0.0, "")
    gaps = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(losses, want.losses, strict=True)]
    return ParityResult(
        steps=len(losses),
        loss_difference=max((gap if gap == gap else float("inf") for gap in gaps), default=0.0),
        grad_norm_difference=0.0,
        parameter_difference=difference,
        worst_parameter=worst,
        tolerance=tolerance,
        parameters=len(differences),
        unjudged=len(differences.keys() - {piece.name for piece in pieces if piece.judged}),
        missing=tuple(sorted(want.end.keys() - differences.keys())),
    )
