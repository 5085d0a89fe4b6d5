"""The answer to a question of the planner: a table for people, or rows of a CSV file."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from paralab.console.lines import MOST, typed
from paralab.errors import UsageError
from paralab.planning import answers as found_by
from paralab.planning import checked, hardware, scale
from paralab.planning.breakdown import CATEGORIES
from paralab.planning.candidates import CHOSEN
from paralab.planning.hardware import Device
from paralab.planning.predict import hidden_share
from paralab.planning.ranking import ALIKE
from paralab.planning.records import text as cell
from paralab.planning.scale import Fact, Training
from paralab.planning.search import Found, search
from paralab.planning.solving import MOST_GPUS, Solved

if TYPE_CHECKING:
    from paralab.planning.shapes import Trained

# what a file of questions asks for: hybrid sharding has no column there
ASKED = tuple(name for name in CHOSEN if name != "shard")
HEADER = ["case_id", "rank", *ASKED, "step_time_s", "memory_gib", "fits", "trained_by_paralab"]
LAYOUT = 30  # of it, the layout
UNLIKE = 0.02  # the share of a model's weights that its shape may miss without a word
MASKED = 0.1  # the share of FLOPs that a causal mask hides, from which on it is said


def answers(case_id: str, raw: Mapping[str, Any], own: Mapping[str, Device], gpu: str, *, top: int) -> list[list[str]]:
    """Return the cells of the best layouts, in the order of `HEADER`; where none fits, of those that need least.

    Raises: UsageError where no layout is legal.
    """
    device = hardware.find(str(raw.get("gpu", gpu)), own)
    if device.measured is not None:
        from paralab.planning.measured import answers as measured

        every = measured.best(raw, device, top=top)
        cells = [[cell(one.get(name, "")) for name in HEADER[2:]] for one in every]
        return [[case_id, str(rank), *row] for rank, row in enumerate(cells, 1)]
    found = search({"shard": 0, **raw}, own, gpu)
    result = found.prediction
    return [
        [
            case_id,
            str(rank),
            *(cell(found_by.row(found, i)[name]) for name in ASKED),
            f"{result.step_time_s[i]:.6g}",
            f"{result.memory_gib[i]:.6g}",
            cell(bool(result.fits[i])),
            cell(found_by.is_trained(found, int(i), None)),
        ]
        for rank, i in enumerate(found.ranked(top), 1)
    ]


def text(
    solved: Solved, raw: Mapping[str, Any], model: "Trained | None", own: Mapping[str, Device], gpu: str, *, top: int
) -> str:
    """Return the answer for a terminal. model: None for shapes that no model of paralab has."""
    found, training = solved.found, solved.training
    first = (*head(found, raw, model), *solved.said)
    lines = [part for line in first for part in _wrapped(line, "")] + [""]
    if found.n_fit:
        best = found.ranked(top)
        lines += [*_times(found, best, model), "", *_memory(found, best), ""]
        lines += [f"Of layouts of one kind within {ALIKE:.0%} of each other the simplest is shown."]
        lines += _simpler(found, best)
        lines += [*_nearly_full(found, best), *_long(found, best), ""]
        lines += _losers(found)
        lines += _typed(found, model)
        if training:
            lines += ["", *_training(found, training)]
    else:
        best = found.ranked(3)
        lines += ["No layout fits. Closest:", *_times(found, best, model), "", *_memory(found, best), ""]
        lines += [part for line in what_would(found, raw, model, own, gpu) for part in _wrapped(line, "")]
        lines += _typed(found, model)
    return "\n".join([*lines, "", *_wrapped(found.caveat, "")])


def head(found: Found, raw: Mapping[str, Any], model: "Trained | None") -> Iterator[str]:
    """Yield what was asked, in three lines, and where a model is not quite what is predicted a fourth."""
    case, device = found.settled.case, found.settled.device
    name = str(raw.get("model", f"{case.layers} x {case.hidden}"))
    length = raw.get("counted", f"{case.sequence_length:,} tokens a sequence")
    yield f"{name}: {_weights(scale.n_weights(found))} weights, {length}, {case.precision}"
    rows = "samples" if case.is_counted else "sequences"
    yield (
        f"{case.n_gpus:,} x {device.gpu}, {device.memory_gib:.0f} GiB each, {case.gpus_per_node} to a node; "
        f"{case.global_batch_size:,} {rows} a step{'' if 'global_batch_size' in raw else ' (assumed)'}"
    )
    yield f"{len(found):,} layouts looked at, {found.n_fit:,} of them fit"
    if model is not None and not case.is_counted:
        yield from _unlike(found, model.n_weights)


def _unlike(found: Found, n_weights: int) -> Iterator[str]:
    """Yield how many weights a model has, where that is not what its shape says."""
    if abs(n_weights / scale.n_weights(found) - 1) > UNLIKE:
        alike = "that are all alike" + " but for those without experts" * bool(found.settled.case.experts)
        yield (
            f"The modules of this model have {_weights(n_weights)} weights: what is predicted has layers {alike}, each "
            "with attention of queries, keys and values that are one product of what goes into it."
        )


def _weights(number: float) -> str:
    return f"{number / 1e9:,.2f} B" if number >= 1e9 else f"{number / 1e6:,.2f} M"


def _times(found: Found, numbers: Iterable[Any], model: "Trained | None") -> Iterator[str]:
    """Yield a table of layouts: step time with the range in which it was where it was checked, and what bounds it.

    Those that paralab does not train are marked.
    """
    numbers = list(numbers)
    names = [found_by.name(found, i) + " *" * (not found_by.is_trained(found, i, model)) for i in numbers]
    is_short = float(found.prediction.step_time_s[numbers[0]]) < 1
    factor, unit = (1000, "ms") if is_short else (1, "s")
    share = f"{checked.SHARE * 10:.0f} in 10"
    yield f" # {'layout':{LAYOUT}}micro recompute{f'step {unit}':>8}{share:>15}  bound"
    for rank, (i, text) in enumerate(zip(numbers, names, strict=True), 1):
        chosen = found_by.row(found, i)
        seconds, low, high = (factor * float(x[i]) for x in (found.prediction.step_time_s, *found.range_s))
        if len(text) >= LAYOUT:
            yield f"{rank:>2} {text}"
        yield (
            f"{'' if len(text) >= LAYOUT else rank:>2} {'' if len(text) >= LAYOUT else text:{LAYOUT}}"
            f"{chosen['micro_batch_size']:>5} {chosen['recompute']:9}{_short(seconds):>8}"
            f"{f'{_short(low)} to {_short(high)}':>15}  {found.prediction.bound[i]}"
        )
    if any(text.endswith("*") for text in names):
        yield found_by.not_trained(found)


def _simpler(found: Found, numbers: np.ndarray) -> Iterator[str]:
    """Yield which layouts are predicted to be faster than the first one, which is simpler than they are."""
    seconds = found.prediction.step_time_s[numbers]
    faster = [str(rank) for rank, one in enumerate(seconds, 1) if one < seconds[0]]
    if faster:
        what = f"Layout {faster[0]} takes" if len(faster) == 1 else f"Layouts {', '.join(faster)} take"
        less = 1 - float(seconds.min() / seconds[0])
        yield from _wrapped(f"{what} up to {less:.1%} less than 1, which is simpler.", "")


def _short(number: float) -> str:
    """Return a number to three digits, zeros at its end among them, so that those of a column are as exact."""
    return f"{number:,.0f}" if number >= 99.95 else f"{number:#.3g}"


def _memory(found: Found, numbers: Iterable[Any]) -> Iterator[str]:
    """Yield a table of the same layouts: throughput, and the memory of the fullest device by category."""
    result = found.prediction
    there = f"GiB of {found.settled.device.memory_gib:.0f}"
    rate_of = f"{scale.unit(found)}/s"
    yield f" # {rate_of:>13}{'MFU':>6}{there:>13}{'states':>9}{'activations':>13}{'at work':>9}{'overhead':>10}"
    for rank, i in enumerate(numbers, 1):
        rate, mfu, gib = scale.units_per_step(found) / result.step_time_s[i], result.mfu[i], result.memory_gib[i]
        states, activations, at_work, overhead = (found.memory_gib[name][i] for name in CATEGORIES)
        yield (
            f"{rank:>2} {rate:>13,.0f}{mfu:>6.0%}{gib:>13.1f}"
            f"{states:>9.1f}{activations:>13.1f}{at_work:>9.1f}{overhead:>10.1f}"
        )


def _nearly_full(found: Found, numbers: Iterable[Any]) -> Iterator[str]:
    """Yield which layouts leave less memory free than predictions of memory were off by; nothing where none does."""
    error, memory = checked.memory_error(), found.prediction.memory_gib
    full = [rank for rank, i in enumerate(numbers, 1) if memory[i] * (1 + error) > found.settled.device.memory_gib]
    if full and not found.settled.case.is_counted:
        several = len(full) > 1
        which = f"Layout{'s' if several else ''} {', '.join(map(str, full))} leave{'' if several else 's'}"
        yield from _wrapped(
            f"{which} less memory free than the {error:.0%} by which it was off on average where it was checked: "
            "with --check a dry run says whether it fits.",
            "",
        )


def _long(found: Found, numbers: Iterable[Any]) -> Iterator[str]:
    """Yield what the MFU is without what a causal mask hides, where sequences are so long that it matters."""
    hidden = hidden_share(found.settled.case)
    if hidden > MASKED:
        first = float(found.prediction.mfu[next(iter(numbers))])
        yield from _wrapped(
            f"MFU counts attention in full, as is usual: without the half that the causal mask hides, {hidden:.0%} of "
            f"all FLOPs, that of layout 1 is {first * (1 - hidden):.0%}.",
            "",
        )


def _losers(found: Found) -> Iterator[str]:
    losers = list(found_by.losers(found))
    yield from ["Why the others lose:"] if losers else []
    for name, i, why in losers:
        text = found_by.name(found, i)
        yield from _wrapped(f"{name}: {text} {'needs' if 'GiB' in why else 'is'} {why}", "  ")


def _typed(found: Found, model: "Trained | None") -> Iterator[str]:
    line = None if model is None else found_by.typed_line(found, model)
    if line is not None:
        yield ""
        yield f"The fastest one that paralab trains{'' if found.n_fit else ', offloaded'}:"
        yield from typed(line)


def _training(found: Found, training: Training) -> Iterator[str]:
    for title, group in scale.facts(found, found.best, training).items():
        yield f"{title}{', under the fastest layout' if title == 'The training' else ''}:"
        for fact in group:
            number = f"{quantity(fact)} {fact.unit}".rstrip()
            yield from _wrapped(f"{fact.name:22}{number:>14}  {fact.source}", "  ", 38)


def quantity(fact: Fact) -> str:
    """Return the number of a fact, to three digits, without a unit."""
    value = fact.value
    if value >= 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def what_would(
    found: Found, raw: Mapping[str, Any], model: "Trained | None", own: Mapping[str, Device], gpu: str
) -> Iterator[str]:
    """Yield what keeps the closest layout from fitting, and what would do: offloading, more GPUs."""
    i, there = found.best, found.settled.device.memory_gib
    over = float(found.prediction.memory_gib[i]) - there
    yield f"{over:,.1f} GiB too much: {found_by.held(found, i)}."
    if (fitting := found_by.offloaded(found, model)) is not None:
        link = found.settled.device.host_gbyte_per_s
        yield (
            f"With {fitting.what} in the memory of the host {fitting.layout} fits, with {fitting.memory_gib:.1f} GiB "
            f"of {there:.0f}, and {fitting.host_gib:,.0f} on the host for each GPU, at {_short(fitting.step_time_s)} s "
            f"a step. Copies over {link:g} GB/s and updates on the host are among them, which no table has measured."
        )
    n = int(found.settled.case.n_gpus)
    while (n := 2 * n) <= MOST_GPUS:
        try:
            if search({**raw, "n_gpus": n}, own, gpu).n_fit:
                yield f"{n:,} GPUs of this kind would do."
                return
        except UsageError:
            continue
    yield "More GPUs of this kind would not help: use devices with more memory, or a smaller model."


def _wrapped(text: str, indent: str, more: int = 2) -> list[str]:
    after = indent + more * " "
    return textwrap.wrap(text, MOST, initial_indent=indent, subsequent_indent=after, break_on_hyphens=False)
