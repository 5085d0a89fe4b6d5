"""How one training step is divided over processes: a degree for each axis, and the options that axes declare.

A layout is written `dp2.tp2.pp2/zero1/1f1b/mb4/sp`: degrees first, joined by dots, then options. Degrees of
one are left out when printing (`dp1` stands for a single process), and every layout parses back to itself. A single
process may have a ZeRO stage (`dp1/zero3`): the stage runs and has nothing to divide. `dp4/zero3/shard2` is ZeRO
within groups of two neighbouring data ranks, and replicas between the groups (hybrid sharded data parallelism).
This module imports no torch, so that a bad layout is refused before anything heavy is loaded.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any, Literal

from paralab.errors import LayoutError, did_you_mean
from paralab.layout import schedules, words
from paralab.layout.division import Division
from paralab.layout.schedules import Schedule

MOST_RANKS = 1_000_000  # of a layout: more than any machine has, and few enough to count with
_FORM = "dp2.tp2.pp2/zero1/1f1b/mb4/sp"


class Layout:
    """Degrees by the names of axes, and the options of those axes; what is left out has its default.

    `Layout(dp=4, zero=3).dp` is 4 and its `.tp` is 1. Layouts do not change, compare by value and can be keys.
    Raises: LayoutError where degrees and options do not fit together; TypeError for a name that no axis has.
    """

    _values: dict[str, Any]  # those that are not the default

    # The axes of this house and their options, for the type checker; what another axis declares is Any to it.
    dp: int
    ep: int
    cp: int
    tp: int
    pp: int
    zero: int
    shard: int | None
    local: int | None
    offload_optimizer: bool
    offload_parameters: bool
    schedule: str | None
    micro_batches: int
    first_layers: int | None
    last_layers: int | None
    sequence_parallel: bool
    cp_style: Literal["ring", "ulysses"] | None

    def __init__(self, **values: Any) -> None:
        defaults = _defaults()
        if unknown := values.keys() - defaults.keys():
            raise TypeError(f"a layout has no {', '.join(sorted(unknown))}: it has {', '.join(defaults)}")
        for axis in words.AXES:
            values |= axis.complete(defaults | values)
        kept = {name: value for name, value in values.items() if value != defaults[name]}
        object.__setattr__(self, "_values", kept)
        self._check()

    def _check(self) -> None:
        for axis in words.printed():
            if self.size(axis.name) < 1:
                raise LayoutError(f"{axis.name}={self.size(axis.name)} in a layout: a degree is at least 1")
        if self.world_size > MOST_RANKS or self.micro_batches > MOST_RANKS:
            raise LayoutError(f"layout {self} has more than {MOST_RANKS} ranks or micro-batches: use fewer")
        for axis in words.printed():
            axis.check_layout(self)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            if name in self._values:
                return self._values[name]
            for axis in words.AXES:
                if name == axis.name:
                    return 1
                for option in axis.options:
                    if name == option.name:
                        return option.default
        raise AttributeError(f"a layout has no {name}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a layout does not change: use layout.but(...)")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._values == other._values

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"Layout({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self._values,)

    def but(self, **values: Any) -> "Layout":
        """Return this layout with other degrees or options. Raises: LayoutError."""
        return Layout(**self._values | values)

    def size(self, name: str) -> int:
        """Return the number of ranks along an axis, a dim of the mesh, or joined dims of it. Raises: KeyError."""
        for axis in words.AXES:
            if name == axis.name:
                return self._values.get(name, 1)
            if name in (dims := axis.dims(self)):
                return dims[name]
        return math.prod(map(self.size, self.joined[name]))

    @property
    def world_size(self) -> int:
        return math.prod(self.size(axis.name) for axis in words.AXES if axis.inside is None)

    @property
    def pipeline(self) -> Schedule:
        """The pipeline schedule, of a layout that has one."""
        assert self.schedule is not None, f"{self} has no pipeline"
        found = schedules.find(self.schedule)
        assert found is not None  # what its axis checks
        return found

    @property
    def stages(self) -> int:
        """Pipeline stages in all: pp times the stages per rank of the schedule."""
        return self.pp * self.pipeline.stages_per_rank if self.schedule else 1

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes with more than one rank, in mesh order: neighbours on the last one are neighbours on a node."""
        return tuple(axis.name for axis in words.AXES if self.size(axis.name) > 1)

    @property
    def factors(self) -> tuple[str, ...]:
        """Those of `axes` whose degrees multiply to the number of processes, in mesh order."""
        return tuple(axis.name for axis in words.AXES if axis.inside is None and self.size(axis.name) > 1)

    @property
    def dims(self) -> dict[str, int]:
        """The dims of the mesh, outermost first: a dim for each axis, or several where an axis is divided in itself."""
        return {name: size for axis in words.AXES for name, size in axis.dims(self).items()}

    @property
    def joined(self) -> dict[str, tuple[str, ...]]:
        """Dims of the mesh that an axis works on as if they were one, by the name of that one."""
        return {name: dims for axis in words.AXES for name, dims in axis.joined(self).items()}

    @property
    def everyone(self) -> str:
        """What all ranks together are called: "world", or the axis or joined dims that all of them are on."""
        names = (*self.axes, *self.joined)
        return next((name for name in names if self.size(name) == self.world_size), "world")

    def __str__(self) -> str:
        degrees = [f"{axis.name}{self.size(axis.name)}" for axis in words.printed() if self.size(axis.name) > 1]
        written = [o.write(self._values[o.name]) for o in words.options() if o.name in self._values]
        return "/".join([".".join(degrees or ["dp1"]), *written])

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Read a layout such as `dp2.tp2.pp2/zero1/1f1b/mb4/sp`.

        Raises: LayoutError naming the part that is not understood.
        """
        degrees, *rest = text.strip().lower().split("/")
        values: dict[str, Any] = {}
        names = [axis.name for axis in words.AXES]
        for part in degrees.split("."):
            match = re.fullmatch(r"([a-z]+)([0-9]{1,9})", part)
            if not match or match[1] not in names:
                raise LayoutError(f"{part!r} in layout {text!r} is not a degree: write it like {_FORM}")
            _put(values, match[1], int(match[2]), text)
        for word in rest:
            for name, value in _meanings(word):
                _put(values, name, value, text)
                break
            else:
                for option in words.options():
                    if said := option.elsewhere.get(word):
                        raise LayoutError(f"{word} in layout {text!r}: {said}")
                hint = did_you_mean(word, [example for option in words.options() for example in option.examples])
                raise LayoutError(f"{word!r} in layout {text!r} is unknown{hint}: write it like {_FORM}")
        return cls(**values)

    def check_world(self, world_size: int) -> None:
        """Raise LayoutError unless the degrees multiply to the number of processes."""
        if self.world_size != world_size:
            used = [a.name for a in words.printed() if self.size(a.name) > 1 and a.inside is None] or ["dp"]
            product = " x ".join(f"{name}{self.size(name)}" for name in used)
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
        inside, each = self.world_size // self.dp, self.micro_batches * accumulation
        for dp in range(world_size // inside, 0, -1):
            if parts_of is None or dp == 1 or parts_of % (dp * each) == 0:
                shard = self.shard if self.shard and self.shard < dp and dp % self.shard == 0 else None
                zero = self.zero if dp * self.cp > 1 or inside == 1 else 0
                return self.but(dp=dp, zero=zero, shard=shard, ep=math.gcd(self.ep, shard or dp))
        others = [axis.name for axis in words.printed() if axis.name != "dp" and axis.inside is None]
        product = " x ".join(f"{name}{self.size(name)}" for name in others)
        raise LayoutError(
            f"layout {self} on {world_size} process(es): {product} = {inside} needed for one data"
            f" rank: use more --procs-per-node or nodes, or a smaller {' or '.join(others)}"
        )

    def check_schedule(self, accumulation: int = 1) -> None:
        """Raise LayoutError when the schedule cannot run with this number of micro-batches.

        The limits are those of torch.distributed.pipelining: 1f1b needs pp micro-batches, dualpipev one for each
        stage, interleaved and zero-bubble a multiple of pp; naive, gpipe and zbv take any number.
        """
        if self.schedule is None:
            return
        total, name = self.micro_batches * accumulation, self.pipeline.name
        least = {"1f1b": self.pp, "dualpipev": self.stages}.get(name, 1)
        multiple = self.pp if name in ("interleaved", "zero-bubble") else 1
        if total >= least and total % multiple == 0:
            return
        step = multiple // math.gcd(multiple, accumulation)  # of micro-batches: accumulation brings the rest
        enough = step * max(-(-least // (accumulation * step)), -(-self.micro_batches // step))
        needed = f"a multiple of {multiple} is" if multiple > 1 else f"at least {least} are"
        raise LayoutError(
            f"{total} micro-batches for {self.stages} stages under {self.schedule}: {needed} needed, "
            f"write the layout as {self.but(micro_batches=enough)}, or use gpipe"
        )

    def divide(self, global_batch_size: int, accumulation: int = 1, *, fixed: bool = False) -> Division:
        """Cut a global batch into equal micro-batches. fixed: it cannot be another one.

        Raises: LayoutError when it does not divide.
        """
        parts = self.dp * self.micro_batches * accumulation
        if accumulation < 1 or global_batch_size < 1 or global_batch_size % parts:
            below = global_batch_size - global_batch_size % parts
            sizes = " or ".join(str(size) for size in (below, below + parts) if size > 0)
            other = self._closest(global_batch_size, accumulation)
            instead = [] if fixed else [f"--global-batch-size {sizes}"]
            if other is not None:
                fewer = f"--nproc {other.world_size} " if other.world_size < self.world_size else ""
                instead.append(f"{fewer}--layout {other}")
            elif fixed:
                instead.append("--accumulation 1")
            stays = ", which stays that of the run," if fixed else ""
            raise LayoutError(
                f"global batch {global_batch_size}{stays} does not divide by dp {self.dp} x micro-batches "
                f"{self.micro_batches} x accumulation {accumulation} = {parts}: use {', or '.join(instead)}"
            )
        return Division(accumulation, self.micro_batches, self.dp, global_batch_size // parts)

    def _closest(self, global_batch_size: int, accumulation: int) -> "Layout | None":
        """Return the closest layout that divides a batch: fewer micro-batches, then another schedule, then fewer ranks.

        None where the accumulation alone does not divide it.
        """
        ways = dict.fromkeys((self.schedule, "gpipe")) if self.schedule else [None]
        for dp in range(min(self.dp, global_batch_size), 0, -1):
            if accumulation < 1 or global_batch_size % (dp * accumulation):
                continue
            each = global_batch_size // (dp * accumulation)
            layout = self if dp == self.dp else self.on(self.world_size // self.dp * dp, parts_of=None)
            for schedule in ways:
                for parts in (parts for parts in range(min(self.micro_batches, each), 0, -1) if each % parts == 0):
                    with contextlib.suppress(LayoutError):
                        other = layout.but(schedule=schedule, micro_batches=parts)
                        other.check_schedule(accumulation)
                        return other
        return None


def _defaults() -> dict[str, Any]:
    degrees = {axis.name: 1 for axis in words.printed()}
    return degrees | {option.name: option.default for option in words.options()}


def _made(values: dict[str, Any]) -> Layout:
    return Layout(**values)


def _meanings(word: str) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of each option that a word may be of."""
    for option in words.options():
        if (value := option.read(word)) is not None:
            yield option.name, value


def _put(values: dict[str, Any], key: str, value: object, text: str) -> None:
    if key in values:
        raise LayoutError(f"layout {text!r} gives {key} twice: write it like {_FORM}")
    values[key] = value
