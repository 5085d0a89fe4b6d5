"""The answer to a question of the planner: a table for people, or rows of a CSV file."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from paralab.errors import ConfigError, UsageError
from paralab.planning import answers as found_by
from paralab.planning import checked
from paralab.planning.breakdown import gib_by_category
from paralab.planning.hardware import Device
from paralab.planning.search import CHOSEN, Found, search

HEADER = ["case_id", "rank", *CHOSEN, "step_time_s", "memory_gib", "fits"]
_MOST_GPUS = 1 << 20


def answers(case_id: str, raw: Mapping[str, Any], own: Mapping[str, Device], gpu: str, *, top: int) -> list[list[str]]:
    """Return the cells of the best layouts, in the order of `HEADER`; where none fits, of those that need least.

    Raises: UsageError where no layout is legal.
    """
    found = search(raw, own, gpu)
    best = found.order if len(found.order) else found.nearest
    result = found.prediction
    return [
        [
            case_id,
            str(rank),
            *(_text(found_by.row(found, i)[name]) for name in CHOSEN),
            f"{result.step_time_s[i]:.6g}",
            f"{result.memory_gib[i]:.6g}",
            _text(bool(result.fits[i])),
        ]
        for rank, i in enumerate(best[:top], 1)
    ]


def report(
    raw: Mapping[str, Any],
    model: Sequence[str],
    own: Mapping[str, Device],
    gpu: str,
    *,
    top: int,
    tokens: str | None,
    price: str | None,
) -> str:
    """Return the answer for a terminal. model: the words that name it on a command line. Raises: UsageError."""
    found = search(raw, own, gpu)
    lines = [*_head(found, raw), ""]
    if len(found.order):
        lines += [*_table(found, found.order[:top]), "", *_losers(found)]
        lines += _typed(found, model)
        if tokens:
            lines += ["", *_scale(found, tokens, price)]
    else:
        lines += ["No layout fits. Closest:", *_table(found, found.nearest[:3]), "", *_what_would(found, raw, own, gpu)]
    return "\n".join([*lines, "", *_wrapped(checked.sentence(), "")])


def _head(found: Found, raw: Mapping[str, Any]) -> Iterator[str]:
    case, device = found.settled.case, found.settled.device
    name = str(raw.get("model", f"{case.layers} x {case.hidden}"))
    billions = found_by.n_weights(found) / 1e9
    yield f"{name}: {billions:,.2f} B weights, {case.sequence_length:,} tokens a sequence, {case.precision}"
    yield (
        f"{case.n_gpus:,} x {device.gpu}, {device.memory_gib:.0f} GiB each, {case.gpus_per_node} to a node; "
        f"{case.global_batch_size:,} sequences a step"
    )
    yield f"{len(found):,} layouts looked at, {len(found.order):,} of them fit"


def _table(found: Found, numbers: Iterable[Any]) -> Iterator[str]:
    case, result = found.settled.case, found.prediction
    tokens = case.global_batch_size * case.sequence_length
    yield f"{'layout':34}{'rows':>5} {'recompute':10}{'step s':>8}{'tokens/s':>11}{'MFU':>5}{'GiB':>5}"
    for i in numbers:
        chosen = found_by.row(found, i)
        text = found_by.layout_text(chosen, found_by.micro_batches(found, i))
        seconds = float(result.step_time_s[i])
        yield (
            f"{text:34}{chosen['micro_batch_size']:>5} {chosen['recompute']:10}{seconds:>8.3g}"
            f"{tokens / seconds:>11,.0f}{float(result.mfu[i]):>5.0%}{float(result.memory_gib[i]):>5.0f}"
        )


def _losers(found: Found) -> Iterator[str]:
    parts = gib_by_category(found.case, found.machine)
    best = int(found.order[0])
    yield from _wrapped(
        f"Fastest: most of its time goes into {found.prediction.bound[best]}; memory in GiB: "
        f"{found_by.held(parts, best)}.",
        "",
    )
    for name, i, why in found_by.losers(found):
        text = found_by.layout_text(found_by.row(found, i), found_by.micro_batches(found, i))
        yield from _wrapped(f"{name}: {text} is {why}" if "times" in why else f"{name}: {text} needs {why}", "  ")


def _typed(found: Found, model: Sequence[str]) -> Iterator[str]:
    line = found_by.typed_line(found, model)
    if line is not None and model:
        yield ""
        yield "The fastest one that paralab trains:"
        yield f"  {line}"


def _scale(found: Found, text: str, price: str | None) -> Iterator[str]:
    amount = _amount(text.removesuffix("x"), "--tokens")
    tokens = amount * found_by.n_weights(found) if text.endswith("x") else amount
    dollars = _amount(price, "--price") if price is not None else None
    costs = found_by.scale(found, int(found.order[0]), tokens, dollars)
    pf_days = costs.flops / 1e15 / 86400
    yield f"{costs.tokens:,.3g} tokens: {costs.flops:.3g} FLOPs (6 a weight and token), {pf_days:,.0f} petaFLOP/s-days"
    money = f", {costs.dollars:,.0f} dollars" if costs.dollars is not None else ""
    yield f"  {costs.days:,.1f} days, {costs.gpu_hours:,.0f} device-hours{money} under the fastest layout"


def _amount(text: str, flag: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < 1e18:
        raise ConfigError(f"{flag} {text}: give a positive number below 1e18, such as 1e11")
    return number


def _what_would(found: Found, raw: Mapping[str, Any], own: Mapping[str, Device], gpu: str) -> Iterator[str]:
    """Yield what keeps the closest layout from fitting, and how many GPUs would do."""
    i = int(found.nearest[0])
    parts = gib_by_category(found.case, found.machine)
    over = float(found.prediction.memory_gib[i]) - found.settled.device.memory_gib
    yield from _wrapped(f"{over:,.1f} GiB too much: {found_by.held(parts, i)}.", "")
    n = int(raw["n_gpus"])
    while (n := 2 * n) <= _MOST_GPUS:
        try:
            if len(search({**raw, "n_gpus": n}, own, gpu).order):
                yield f"{n:,} GPUs of this kind would do."
                return
        except UsageError:
            continue
    yield "More GPUs of this kind would not help: use devices with more memory, or a smaller model."


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 80, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
