"""What one rank notes of a step of a layout, in marks: small enough to be sent to the rank that has the reference."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from paralab.axes import used
from paralab.axes.initialise import local, local_slices
from paralab.axes.optimizer import Piece
from paralab.data.dataset import Batch
from paralab.engines.native import NativeEngine
from paralab.parity.listening import BACKWARD, CLIP, SHARE, UPDATE, Listener, Spot, finished, tell_moments
from paralab.parity.marks import Mark, Marked, Place, mark, marked


@dataclass
class Notes:
    """What a rank noted of a step.

    ranks: this rank's number on each axis. finishes: the axes that complete gradients after backward, in order. start:
    parameters and buffers before the step. batch: the tensors of its rows. heard: what modules got and gave, by spot,
    whether it is the gradient, and micro-batch. gradients: by moment and parameter; None where it has
    something else, from which an axis is still to make it.
    clipped, updated: of the piece that this rank updates. shared: of all that it holds. end: buffers after the step.
    """

    ranks: dict[str, int]
    finishes: list[str]
    start: dict[str, Marked | None] = field(default_factory=dict)
    batch: list[Marked | None] = field(default_factory=list)
    heard: dict[tuple[Spot, bool, int], Marked | None] = field(default_factory=dict)
    gradients: dict[tuple[str, str], Marked | None] = field(default_factory=dict)
    clipped: dict[str, Marked] = field(default_factory=dict)
    updated: dict[str, Marked] = field(default_factory=dict)
    shared: dict[str, Marked] = field(default_factory=dict)
    end: dict[str, Marked | None] = field(default_factory=dict)
    loss: float = 0.0
    grad_norm: float = 0.0


class Watched:
    """An engine of which every step is noted. It is of no other use afterwards."""

    def __init__(self, engine: NativeEngine) -> None:
        self.engine, self.context = engine, engine.context
        layout, mesh = self.context.layout, self.context.mesh
        held = layout.pipeline.stages_of(mesh.rank("pp"), layout.pp) if layout.schedule else (0,)
        self.listener = Listener(engine.parts, self._heard, last=[stage == layout.stages - 1 for stage in held])
        self.names = {id(p): name for part in engine.parts for name, p in part.named_parameters()}
        self.finishes = [getattr(finish, "axis", "") for finish in engine.finish]
        if isinstance(getattr(engine.forward_backward, "model", None), DistributedDataParallel):
            self.finishes = []  # it averages during backward; what comes afterwards only looks whether all is there
        self.moments = [BACKWARD, *map(finished, self.finishes)]
        tell_moments(engine, self._told)

    def step(self, batch: Batch) -> Notes:
        """Take a step, and return what was noted. Collective."""
        axes = used(self.context.layout)
        self.notes = Notes({axis.name: self.context.mesh.rank(axis.name) for axis in axes}, self.finishes)
        self.notes.start = {name: marked(tensor) for name, tensor in self._tensors()}
        self.notes.batch = [marked(x) for x in (*batch.inputs, *_targets(batch))]
        before = {name: mark(piece.updated) for name, piece in self._pieces()}
        self.listener.new_step()
        self.scale = 1.0 / self.engine.loss_scale.value
        result = self.engine.step(batch)
        for name, was in before.items():
            if name in self.notes.updated:
                self.notes.updated[name] = _less(self.notes.updated[name], was)
        for name, now in self.notes.shared.items():
            was_there = self.notes.start[name]
            assert was_there is not None, "a parameter is never a term of a sum"
            self.notes.shared[name] = _less(now, was_there.mark)
        self.notes.end = {name: marked(buffer) for part in self.engine.parts for name, buffer in part.named_buffers()}
        self.notes.loss, self.notes.grad_norm = result.loss.item(), result.grad_norm.item()
        return self.notes

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for part in self.engine.parts:
            yield from part.named_parameters()
            yield from part.named_buffers()

    def _pieces(self) -> Iterator[tuple[str, Piece]]:
        return ((self.names[id(piece.parameter)], piece) for piece in self.engine.pieces)

    def _heard(self, spot: Spot, gradient: bool, micro_batch: int, tensor: Tensor) -> None:
        found = marked(tensor, self.scale if gradient else 1.0)
        self.notes.heard.setdefault((spot, gradient, micro_batch), found)

    def _told(self, moment: str) -> None:
        if moment == CLIP:
            for name, piece in self._pieces():
                if (grad := piece.parameter.grad) is not None:
                    self.notes.clipped[name] = _of_piece(piece, piece.of(grad))
        elif moment == UPDATE:
            self.notes.updated = {name: _of_piece(piece, local(piece.updated)) for name, piece in self._pieces()}
        elif moment == SHARE:
            self.notes.shared = {name: _whole(piece.parameter, piece.parameter) for name, piece in self._pieces()}
        elif moment in self.moments:
            for name, piece in self._pieces():
                self.notes.gradients[moment, name] = self._gradient(piece.parameter, ended=moment != BACKWARD)

    def _gradient(self, parameter: Tensor, *, ended: bool) -> Marked | None:
        """Mark a gradient; one that does not lie as its parameter does where an axis has completed it, not before."""
        grad = parameter.grad
        if grad is None:
            return _whole(parameter, local(parameter) * 0)
        aligned = not isinstance(grad, DTensor) or grad.placements == getattr(parameter, "placements", None)
        if not aligned and not ended:
            return None
        found = _whole(parameter, grad)
        return Marked(found.shape, found.where, found.mark * self.scale)


def _whole(parameter: Tensor, tensor: Tensor) -> Marked:
    """Mark a tensor that lies where this rank's piece of a parameter does."""
    where = tuple((part.start, part.stop) for part in local_slices(parameter))
    return Marked(tuple(parameter.shape), where, mark(local(tensor)))


def _of_piece(piece: Piece, tensor: Tensor) -> Marked:
    """Mark a tensor that lies where the piece does that this rank updates."""
    where: Place = tuple((part.start, part.stop) for part in local_slices(piece.parameter))
    if piece.rows != slice(None):
        where = where or tuple((0, size) for size in piece.parameter.shape)
        first = where[0][0]
        where = ((first + piece.rows.start, first + piece.rows.stop), *where[1:])
    return Marked(tuple(piece.parameter.shape), where, mark(local(tensor)))


def _less(now: Marked, was: Mark) -> Marked:
    return Marked(now.shape, now.where, now.mark - was)


def _targets(batch: Batch) -> tuple[Tensor, ...]:
    return batch.given if isinstance(batch.given, tuple) else (batch.given,)
