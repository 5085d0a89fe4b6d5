"""What each way of splitting would hold and send of a module of one's own, before any process is started."""

import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

from paralab.axes.held import state_bytes
from paralab.axes.sent import predicted_sent
from paralab.console.quantities import size_text
from paralab.errors import LayoutError, UsageError
from paralab.layout import Layout
from paralab.layout import strategies as named
from paralab.library import values as own_values
from paralab.library.batches import Form, flatten
from paralab.library.own import Loss, Told, spec_of
from paralab.library.parallelize import check_axes
from paralab.library.pipeline import Pipeline
from paralab.library.sharding import division_of
from paralab.library.work import Brought, OwnRun, OwnWork
from paralab.models.sequence import SequenceShape
from paralab.models.spec import Style
from paralab.options.choices import OptimizerName, Precision


@dataclass(frozen=True)
class Planned:
    """What one layout would hold and send. why_not: the reason where it cannot be used; the other fields are None then.

    state_bytes: parameters, gradients and optimizer states on the rank that holds most, at their peak. sent_bytes: what
    the rank that sends most sends in a step, by ring algorithms, by axis.
    """

    strategy: str
    layout: Layout | None
    state_bytes: int | None = None
    sent_bytes: Mapping[str, float] | None = None
    why_not: str = ""


class Plan(list[Planned]):
    """The strategies for so many processes, each with what it would cost. Prints as a table."""

    def __str__(self) -> str:
        lines = [f"{'strategy':10}{'layout':18}{'state':>10}{'sent a step':>13}  by axis"]
        return "\n".join([*lines, *(line for row in self for line in _lines(row))])


def _lines(row: Planned) -> Iterator[str]:
    """Yield what a row says, in lines of at most 80 columns."""
    if row.state_bytes is None or row.sent_bytes is None:
        yield from textwrap.wrap(row.why_not, 80, initial_indent=f"{row.strategy:10}", subsequent_indent=" " * 10)
        return
    total = sum(row.sent_bytes.values())
    shares = ", ".join(f"{axis} {n / total:.0%}" for axis, n in row.sent_bytes.items() if n > total / 200)
    yield f"{row.strategy:10}{row.layout!s:18}{size_text(row.state_bytes):>10}{size_text(total):>13}  {shares}".rstrip()


def plan(
    model: nn.Module | Callable[[], nn.Module],
    processes: int,
    *,
    example: Any,
    loss: Loss | None = None,
    blocks: str | None = None,
    tensor: Mapping[str, Style] | None = None,
    pipeline: Pipeline | None = None,
    sequence: SequenceShape | None = None,
    experts: str | None = None,
    precision: Precision = "fp32",
    accumulation: int = 1,
    optimizer: OptimizerName = "adamw",
) -> Plan:
    """Return what each strategy over so many processes would hold and send of a module. Nothing is started.

    model, loss, blocks, tensor, pipeline, sequence, experts, precision, accumulation: as `parallelize` takes them.
    example: a global batch, whose shapes count. optimizer: whose states count: those of Adam, or of SGD with momentum.
    Returns: a row for each strategy; print it for a table. Activations and time are not in it.
    Raises: ConfigError, DataError, LayoutError for a module or a batch that no strategy could use.
    """
    skeleton, _ = own_values.make(model, main=False, drawn=True)
    batch, form = flatten(example, has_loss=loss is not None)

    def seen() -> Form:
        return form

    told = Told(
        loss=loss, blocks=blocks, tensor=tensor, pipeline=pipeline, sequence=sequence, experts=experts, batch=batch
    )
    spec = spec_of(skeleton, told, form=seen, architecture=own_values.digest(skeleton))
    config = spec.config()
    brought = Brought(own_values.tensors_of(skeleton), _no_optimizer, None, seed=0)

    def cost(strategy: str, layout: Layout) -> Planned:
        check_axes(layout, spec, skeleton, pipeline)
        run = OwnRun(layout=layout, engine="torch", precision=precision, accumulation=accumulation, optimizer=optimizer)
        division = division_of(layout, len(batch), accumulation)
        work = OwnWork(run, spec, config, "own", layout, division, brought)
        sent = [_sent(work, pp_rank) for pp_rank in range(layout.pp)]
        most = max(sent, key=lambda by_axis: sum(by_axis.values()))
        return Planned(strategy, layout, state_bytes(work).total, {axis: float(n) for axis, n in most.items()})

    return Plan(_rows(processes, cost))


def _sent(work: OwnWork, pp_rank: int) -> Mapping[str, Fraction]:
    """Return the bytes that a rank of a stage sends in a step, by axis. Raises: LayoutError."""
    try:
        return predicted_sent(work, pp_rank).ring_bytes
    except Exception as error:  # of the module, which may be any
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise LayoutError(
            f"a forward pass without values fails ({said}), so that nobody knows what is sent: try it with prove()"
        ) from error


def _rows(processes: int, cost: Callable[[str, Layout], Planned]) -> Iterator[Planned]:
    for strategy in named.STRATEGIES:
        if strategy == "single" and processes > 1:
            continue
        layout = None
        try:
            layout = named.layout_of(strategy, processes)
            yield cost(strategy, layout)
        except UsageError as error:
            yield Planned(strategy, layout, why_not=str(error))


def _no_optimizer(parameters: Any) -> Any:
    raise LayoutError("plan() makes no optimizer")
