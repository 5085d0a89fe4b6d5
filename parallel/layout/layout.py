"""How one training step is divided over processes: degrees, ZeRO stage, pipeline schedule, micro-batches.

A layout is written `dp2.tp2.pp2/zero1/1f1b/mb4/sp`: degrees first, joined by dots, then options. Degrees of
one are left out when printing (`dp1` stands for a single process), and every layout parses back to itself. A single
process may have a ZeRO stage (`dp1/zero3`): the stage runs and has nothing to divide. `dp4/zero3/shard2` is ZeRO
within groups of two neighbouring data ranks, and replicas between the groups (hybrid sharded data parallelism).
This module imports no torch, so that a bad layout is refused before anything heavy is loaded.
"""

import math
import re
from dataclasses import dataclass, replace

from parallel.errors import LayoutError, did_you_mean
from parallel.layout.division import Division
from parallel.layout.schedules import SCHEDULES

DEGREES = ("dp", "tp", "pp")
DP_REPLICATE, DP_SHARD = "dp_replicate", "dp_shard"  # the data axis in two, outermost first: neighbours share a shard
MOST_RANKS = 1_000_000  # of a layout: more than any machine has, and few enough to count with
_FORM = "dp2.tp2.pp2/zero1/1f1b/mb4/sp"


@dataclass(frozen=True)
class Layout:
    """Degrees of data (dp), tensor (tp) and pipeline (pp) parallelism, and the options that go with them.

    zero: 0 keeps full replicas, 1 shards optimizer states, 2 also gradients, 3 also parameters (over dp).
    shard: ZeRO only; it divides over groups of so many neighbouring data ranks, None over all of them.
    schedule, micro_batches: pipeline only; None and 1 without one.
    sequence_parallel: tensor only; activations between the tensor-parallel parts are split along the sequence.
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    zero: int = 0
    shard: int | None = None
    schedule: str | None = None
    micro_batches: int = 1
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        for axis in DEGREES:
            if getattr(self, axis) < 1:
                raise LayoutError(f"{axis}={getattr(self, axis)} in a layout: a degree is at least 1")
        if self.world_size > MOST_RANKS or self.micro_batches > MOST_RANKS:
            raise LayoutError(f"layout {self} has more than {MOST_RANKS} ranks or micro-batches: use fewer")
        if self.zero not in (0, 1, 2, 3):
            raise LayoutError(f"zero{self.zero} in a layout: the ZeRO stage is 0, 1, 2 or 3")
        if self.micro_batches < 1:
            raise LayoutError(f"mb{self.micro_batches} in a layout: at least mb1 is needed")
        if self.schedule is not None and self.schedule not in SCHEDULES:
            hint = did_you_mean(self.schedule, SCHEDULES)
            raise LayoutError(f"schedule {self.schedule!r} is unknown{hint}: use one of {', '.join(SCHEDULES)}")
        if self.pp == 1 and (self.schedule is not None or self.micro_batches != 1):
            got = self.schedule or f"mb{self.micro_batches}"
            raise LayoutError(f"{got} without a pipeline: add a degree such as pp2, or leave {got} out")
        if self.pp > 1 and self.schedule is None:
            object.__setattr__(self, "schedule", "1f1b")
        if self.schedule == "naive" and self.micro_batches != 1:
            raise LayoutError(f"mb{self.micro_batches} with the naive schedule: it runs one micro-batch, use gpipe")
        if self.sequence_parallel and self.tp == 1:
            raise LayoutError("sp without tensor parallelism: add a degree such as tp2, or leave sp out")
        if self.zero and self.dp == 1 and self.world_size > 1:
            raise LayoutError(f"zero{self.zero} with dp1: there is nothing to shard over, add a degree such as dp2")
        if self.shard is not None:
            self._check_shard(self.shard)

    def _check_shard(self, shard: int) -> None:
        """Raise LayoutError unless ZeRO divides over groups of so many data ranks."""
        if not self.zero:
            raise LayoutError(f"shard{shard} without ZeRO: nothing is sharded, add zero3, or leave shard{shard} out")
        if shard == self.dp > 1:
            raise LayoutError(
                f"shard{shard} with dp{self.dp}: one group of all data ranks is plain ZeRO, leave shard{shard} out"
            )
        if not 1 < shard < self.dp or self.dp % shard:
            nearest = sorted((n for n in range(2, self.dp) if self.dp % n == 0), key=lambda n: abs(n - shard))[:2]
            raise LayoutError(
                f"shard{shard} with dp{self.dp}: two groups or more of at least 2 data ranks each are needed, "
                f"use {' or '.join(f'shard{n}' for n in nearest) or 'another dp'}, or leave shard{shard} out"
            )

    @property
    def world_size(self) -> int:
        return self.dp * self.tp * self.pp

    @property
    def stages(self) -> int:
        """Pipeline stages in all: pp times the stages per rank of the schedule."""
        return self.pp * SCHEDULES[self.schedule].stages_per_rank if self.schedule else 1

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes with more than one rank, in mesh order (pp outermost, tp innermost)."""
        return tuple(axis for axis in ("pp", "dp", "tp") if getattr(self, axis) > 1)

    @property
    def dp_shard(self) -> int:
        """Data ranks that ZeRO divides over: all of them, or those of a group; 1 without ZeRO."""
        return (self.shard or self.dp) if self.zero else 1

    @property
    def dp_replicate(self) -> int:
        """Data ranks that hold the same of the parameters' states: the groups, or without ZeRO every data rank."""
        return self.dp // self.dp_shard

    @property
    def sub_axes(self) -> tuple[str, ...]:
        """The two axes within dp, outermost first, where ZeRO divides over groups; else none."""
        return (DP_REPLICATE, DP_SHARD) if self.shard else ()

    @property
    def shard_axis(self) -> str:
        """The axis that ZeRO divides over."""
        return DP_SHARD if self.shard else "dp"

    def __str__(self) -> str:
        degrees = [f"{axis}{getattr(self, axis)}" for axis in DEGREES if getattr(self, axis) > 1] or ["dp1"]
        options = [
            f"zero{self.zero}" if self.zero else "",
            f"shard{self.shard}" if self.shard else "",
            self.schedule or "",
            f"mb{self.micro_batches}" if self.micro_batches > 1 else "",
            "sp" if self.sequence_parallel else "",
        ]
        return "/".join([".".join(degrees), *filter(None, options)])

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Read a layout such as `dp2.tp2.pp2/zero1/1f1b/mb4/sp`.

        Raises: LayoutError naming the part that is not understood.
        """
        degrees, *options = text.strip().lower().split("/")
        fields: dict = {}
        for part in degrees.split("."):
            match = re.fullmatch(r"([a-z]+)([0-9]{1,9})", part)
            if not match or match[1] not in DEGREES:
                raise LayoutError(f"{part!r} in layout {text!r} is not a degree: write it like {_FORM}")
            _put(fields, match[1], int(match[2]), text)
        for option in options:
            if match := re.fullmatch(r"zero([0-9]{1,9})", option):
                _put(fields, "zero", int(match[1]), text)
            elif match := re.fullmatch(r"shard([0-9]{1,9})", option):
                _put(fields, "shard", int(match[1]), text)
            elif match := re.fullmatch(r"mb([0-9]{1,9})", option):
                _put(fields, "micro_batches", int(match[1]), text)
            elif option == "sp":
                _put(fields, "sequence_parallel", True, text)
            elif option in SCHEDULES:
                _put(fields, "schedule", option, text)
            else:
                hint = did_you_mean(option, [*SCHEDULES, "zero1", "zero2", "zero3", "shard2", "mb4", "sp"])
                raise LayoutError(f"{option!r} in layout {text!r} is unknown{hint}: write it like {_FORM}")
        return cls(**fields)

    def check_world(self, world_size: int) -> None:
        """Raise LayoutError unless the degrees multiply to the number of processes."""
        if self.world_size != world_size:
            product = " x ".join(f"{axis}{getattr(self, axis)}" for axis in DEGREES)
            raise LayoutError(
                f"layout {self} needs {product} = {self.world_size} processes, {world_size} requested: "
                f"use --nproc {self.world_size}, or degrees that multiply to {world_size}"
            )

    def on(self, world_size: int, *, parts_of: int | None, accumulation: int = 1) -> "Layout":
        """Return this layout with as many data ranks as there are processes for; the rest of it stays.

        parts_of: a global batch that has to divide by them: some processes may be left over. Groups that ZeRO divides
        over stay where they divide the data ranks; else it divides over all of them.
        Raises: LayoutError when there are too few processes for one data rank.
        """
        inside, each = self.tp * self.pp, self.micro_batches * accumulation
        for dp in range(world_size // inside, 0, -1):
            if parts_of is None or dp == 1 or parts_of % (dp * each) == 0:
                shard = self.shard if self.shard and self.shard < dp and dp % self.shard == 0 else None
                return replace(self, dp=dp, zero=self.zero if dp > 1 or inside == 1 else 0, shard=shard)
        raise LayoutError(
            f"layout {self} on {world_size} process(es): tp{self.tp} x pp{self.pp} = {inside} needed for one data"
            f" rank: use more --procs-per-node or nodes, or a smaller tp or pp"
        )

    def check_schedule(self, accumulation: int = 1) -> None:
        """Raise LayoutError when the schedule cannot run with this number of micro-batches.

        The limits are those of torch.distributed.pipelining: 1f1b needs pp micro-batches, dualpipev one for each
        stage, interleaved and zero-bubble a multiple of pp; naive, gpipe and zbv take any number.
        """
        total = self.micro_batches * accumulation
        least = {"1f1b": self.pp, "dualpipev": self.stages}.get(self.schedule or "", 1)
        multiple = self.pp if self.schedule in ("interleaved", "zero-bubble") else 1
        if total >= least and total % multiple == 0:
            return
        step = multiple // math.gcd(multiple, accumulation)  # of micro-batches: accumulation brings the rest
        enough = step * max(-(-least // (accumulation * step)), -(-self.micro_batches // step))
        needed = f"a multiple of {multiple} is" if multiple > 1 else f"at least {least} are"
        raise LayoutError(
            f"{total} micro-batches for {self.stages} stages under {self.schedule}: {needed} needed, "
            f"write the layout as {replace(self, micro_batches=enough)}, or use gpipe"
        )

    def divide(self, global_batch_size: int, accumulation: int = 1) -> Division:
        """Cut a global batch into equal micro-batches.

        Raises: LayoutError when it does not divide.
        """
        parts = self.dp * self.micro_batches * accumulation
        if accumulation < 1 or global_batch_size < 1 or global_batch_size % parts:
            below = global_batch_size - global_batch_size % parts
            sizes = " or ".join(str(size) for size in (below, below + parts) if size > 0)
            raise LayoutError(
                f"global batch {global_batch_size} does not divide by dp {self.dp} x micro-batches "
                f"{self.micro_batches} x accumulation {accumulation} = {parts}: use --global-batch-size {sizes}"
            )
        return Division(accumulation, self.micro_batches, self.dp, global_batch_size // parts)


def _put(fields: dict, key: str, value: object, text: str) -> None:
    if key in fields:
        raise LayoutError(f"layout {text!r} gives {key} twice: write it like {_FORM}")
    fields[key] = value
