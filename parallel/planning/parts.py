"""What the parts of a model take for one sample, as they were counted, and the case that follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paralab.axes.case import CountedCase
from paralab.axes.pipeline.cost import V_SHAPED

RANKS = ("first", "middle", "last", "held")


@dataclass(frozen=True)
class Part:
    """What a part of a model takes for one sample, forward. flops: of products and convolutions.

    divided_weights, divided_flops: of these, what tensor ranks divide. traffic: elements that other operations read and
    write. kept: elements that backward needs. divided_kept: of these, what tensor ranks divide. boundary: elements
    that it hands on. launches: operations. reductions: all-reduces over tensor ranks.
    """

    weights: float = 0.0
    divided_weights: float = 0.0
    flops: float = 0.0
    divided_flops: float = 0.0
    traffic: float = 0.0
    kept: float = 0.0
    divided_kept: float = 0.0
    boundary: float = 0.0
    launches: float = 0.0
    reductions: float = 0.0


@dataclass(frozen=True)
class Kept:
    """Elements that backward needs of one sample: of what is before the blocks, of all blocks, and of what is after.

    handed_on: that all blocks hand on. divided: of those of blocks, what tensor ranks divide.
    """

    first: float
    blocks: float
    last: float
    handed_on: float
    divided: float


@dataclass(frozen=True)
class Counted:
    """A model as it was counted. tensor_divides: what the tensor degree has to divide. unit: what throughput counts.

    kept_in_16: in elements of 2 bytes, where products are in 16 bits; None where that is not known, and all is taken to
    be so wide. kept_of_cast: the same where weights were cast to 16 bits, as FSDP does.
    """

    blocks: tuple[Part, ...]
    first: Part
    last: Part
    tensor_divides: int
    unit: str
    units_per_sample: int
    kept_in_16: Kept | None = None
    kept_of_cast: Kept | None = None

    def __str__(self) -> str:
        flops = 3 * sum(part.flops for part in (self.first, *self.blocks, self.last))
        return f"{len(self.blocks)} blocks, {flops:.3g} FLOPs of a sample"

    def mean(self, name: str) -> float:
        """Return a field of the average block."""
        return sum(getattr(block, name) for block in self.blocks) / len(self.blocks)

    def columns(self) -> dict[str, Any]:
        """Return the columns that stand for it in a question: a sample is a sequence of one token."""
        width = max(1, round(self.mean("boundary")))
        shape = {"layers": len(self.blocks), "hidden": width, "heads": self.tensor_divides, "head_dim": 1, "vocab": 1}
        return shape | {"sequence_length": 1, "sequence_parallel": False, "ffn": 1, "counted": self}

    def case(self, values: Mapping[str, Any], stages: Sequence[int] = ()) -> CountedCase:
        """Return the case of these values, whose model is this one. stages: layers of each; () for evenly."""
        pp, vpp = int(values["pp"]), int(values["vpp"])
        split = stages or even(len(self.blocks), pp * vpp)
        of, n = self._kept(str(values["precision"])), len(self.blocks)
        kept = {"first_kept": of.first, "block_kept": of.blocks / n, "last_kept": of.last}
        kept |= {"block_divided_kept": of.divided / n, "block_boundary": of.handed_on / n}
        parts = {f"block_{name}": self.mean(name) for name in Part.__dataclass_fields__}
        parts |= {f"{end}_{name}": getattr(getattr(self, end), name) for end in ("first", "last") for name in ENDS}
        return CountedCase(
            **{**values, **self.held_by(split, pp, vpp, str(values["schedule"]))},
            unit=self.unit,
            units_per_sample=self.units_per_sample,
            **{**parts, **kept, **self._cast(str(values["precision"]))},
        )

    def _kept(self, precision: str) -> Kept:
        """Return what backward needs of one sample in a precision, in its elements."""
        if precision != "fp32" and self.kept_in_16 is not None:
            return self.kept_in_16
        blocks, handed_on, divided = (
            sum(getattr(block, name) for block in self.blocks) for name in ("kept", "boundary", "divided_kept")
        )
        return Kept(self.first.kept, blocks, self.last.kept, handed_on, divided)

    def _cast(self, precision: str) -> dict[str, float]:
        """Return the shares that are left of what blocks keep and hand on, where weights were cast."""
        shares = 1.0, 1.0
        if precision != "fp32" and self.kept_in_16 is not None and self.kept_of_cast is not None:
            whole, cast = self.kept_in_16, self.kept_of_cast
            shares = cast.blocks / whole.blocks, cast.handed_on / whole.handed_on
        return dict(zip(("cast_kept_share", "cast_boundary_share"), shares, strict=True))

    def held_by(self, stages: Sequence[int], pp: int, vpp: int, schedule: str) -> dict[str, float]:
        """Return what ranks hold, in blocks of average size: of seconds (layers_*), of weights and of what is kept."""
        ranks = [*range(pp), *range(pp - 1, -1, -1)] if schedule in V_SHAPED and vpp == 2 else list(range(pp)) * vpp
        found: dict[str, float] = {}
        for name, of in (("layers", "flops"), ("weights", "weights"), ("kept", "kept")):
            blocks, mean = iter(self.blocks), self.mean(of) or 1.0
            held = [0.0] * pp
            for rank, n in zip(ranks, stages, strict=True):
                held[rank] += sum(getattr(next(blocks), of) for _ in range(n)) / mean
            middle = max(held[1:-1], default=0.0)
            values = zip(RANKS, (held[0], middle, held[-1], middle), strict=True)
            found |= {f"{name}_{rank}": value for rank, value in values}
        return found | {"held_rank": 1 if pp > 2 else 0}


ENDS = ("weights", "flops", "traffic", "kept", "launches")


def even(layers: int, stages: int) -> tuple[int, ...]:
    """Return the layers of each stage, divided evenly: what is left over goes to the first ones."""
    each, more = divmod(layers, stages)
    return tuple(each + (stage < more) for stage in range(stages))
