"""Differences of parameters from the reference, relative to how far the reference moved them.

A parameter that is never updated differs by 1, and so does one that is moved twice as far, whatever the learning rate,
the optimizer and the warm-up are. What cannot be told from rounding is not judged, and is counted.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Compared:
    """One rank's piece of a parameter beside the same piece of the reference.

    where: its place in the whole parameter, equal for ranks that hold the same piece. difference: in movements of the
    reference. judged: whether a piece that stays where it was would be seen. along, squared: the inner products of
    the reference's movement with this rank's movement, and with itself.
    """

    name: str
    where: tuple[tuple[int, int], ...]
    difference: float
    judged: bool
    along: float
    squared: float


Measure = Callable[[Tensor, Tensor, float, float], float]


def by_element(gap: Tensor, moved: Tensor, largest: float, noise: float) -> float:
    """Return the largest gap of an element, in the largest movement of the whole parameter.

    gap: what rounding does not explain of this piece, at least 0, of the piece's shape. moved: what the reference moved
    the same piece by, of that shape. largest: the largest movement of the whole parameter. noise: what rounding noise
    in gradients may move an element.
    """
    return _ratio(gap.max().item(), max(largest, 10 * noise))


def by_rms(gap: Tensor, moved: Tensor, largest: float, noise: float) -> float:
    """Return the root mean square of the gaps in that of the movement, for arithmetic in which elements go astray.

    Arguments and shapes are those of `by_element`. Elements that move less than noise have no gradient but rounding, of
    which Adam makes full steps in low precision: they are left out, except those that the reference leaves exactly
    where they were. Of a parameter that moves by less than noise everywhere all are left out: there a step that is
    lost in the digits of a value leaves it where it was as well.
    """
    kept = moved.abs() >= noise
    if largest == 0 or largest >= noise:
        kept |= moved == 0
    return _ratio(gap[kept].norm().item(), moved[kept].norm().item()) if kept.any() else 0.0


def by_projection(gap: Tensor, moved: Tensor, largest: float, noise: float) -> float:
    """Return 0 where `over_pieces` judges, from the whole parameter; infinity where it moved and should not have.

    Arguments and shapes are those of `by_element`.
    """
    return 0.0 if moved.any() else _ratio(gap.max().item(), 0.0)


def compare(
    name: str,
    piece: Tensor,
    *,
    where: tuple[slice, ...],
    start: Tensor,
    end: Tensor,
    noise: float,
    steps: int,
    tolerance: float,
    measure: Measure,
) -> Compared:
    """Compare a piece of a parameter after some steps with the reference.

    piece: at `where` in the whole parameter, of the shape that those slices cut. start, end: the whole parameter before
    and after the reference's steps. noise: as for the measures. tolerance: what the difference is compared with.
    """
    whole = end - start
    moved, end, start = whole[where], end[where], start[where]
    # an update is rounded to the digits of the value once a step, here and in the reference
    rounding = steps * torch.finfo(end.dtype).eps * torch.maximum(start.abs(), end.abs())
    largest = whole.abs().max().item()
    difference = measure(_beyond(piece - end, rounding), moved, largest, noise)
    explained = _beyond(moved, rounding)
    seen = float(explained.any()) if measure is by_projection else measure(explained, moved, largest, noise)
    return Compared(
        name,
        tuple((part.start, part.stop) for part in where),
        difference if difference == difference else float("inf"),
        judged=seen > tolerance,
        along=((piece - start) * moved).sum().item(),
        squared=moved.square().sum().item(),
    )


def over_pieces(pieces: Iterable[Compared], measure: Measure) -> dict[str, float]:
    """Return the difference of each parameter, given the pieces of all ranks.

    By projection it is how far the movement along the reference's, over the whole parameter, is from all of it: what
    is too much counts in full, what is missing by half, because steps that noise turns aside only shorten it.
    """
    pieces = list(pieces)
    worst: dict[str, float] = {}
    for piece in pieces:
        worst[piece.name] = max(piece.difference, worst.get(piece.name, 0.0))
    if measure is not by_projection:
        return worst
    furthest: dict[tuple, Compared] = {}  # of the ranks that hold the same piece
    for piece in pieces:
        key = (piece.name, piece.where)
        if key not in furthest or _astray(piece) > _astray(furthest[key]):
            furthest[key] = piece
    for name in worst:
        mine = [piece for (of, _), piece in furthest.items() if of == name]
        squared = sum(piece.squared for piece in mine)
        if squared > 0 and worst[name] == 0.0 and any(piece.judged for piece in mine):
            share = sum(piece.along for piece in mine) / squared
            difference = max(share - 1, (1 - share) / 2)
            worst[name] = difference if difference == difference else float("inf")
    return worst


def _astray(piece: Compared) -> float:
    gap = abs(piece.along - piece.squared)
    return gap if gap == gap else float("inf")


def _beyond(gap: Tensor, rounding: Tensor) -> Tensor:
    return (gap.abs() - rounding).clamp(min=0)


def _ratio(part: float, whole: float) -> float:
    return 0.0 if part == 0 else part / whole if whole else float("inf")
