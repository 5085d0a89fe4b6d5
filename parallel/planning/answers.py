"""What a search found, in words and lines: the layout as it is typed, and why others lose."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from paralab.errors import LayoutError
from paralab.layout import SCHEDULES, Layout, layers_of_stages
from paralab.layout.strategies import of_data_ranks
from paralab.planning.breakdown import CATEGORIES, gib_by_category
from paralab.planning.cases import SHOWN
from paralab.planning.hardware import TRAINED_PRECISIONS
from paralab.planning.predict import evaluate
from paralab.planning.ranking import ALIKE, ranked
from paralab.planning.search import Found

if TYPE_CHECKING:
    from paralab.planning.shapes import Trained

_NAMES = {"zb-1p": "zero-bubble", "zb-h1": "zero-bubble"}  # schedules that layouts have under another name
_SPENT = {  # what a step spends its time on, in words
    "host": "launches by the host",
    "compute": "matrix products",
    "memory": "operations that move memory",
    "link": "communication",
    "bubble": "idle stages (bubble)",
}
_DATA = np.array([[of_data_ranks(zero, groups=groups) for groups in (False, True)] for zero in range(4)])
FAMILIES = ("ddp", "zero1", "zero2", "zero3", "hsdp", "tensor", "pipeline", "tensor + pipeline", "context", "experts")


def layout_text(columns: Mapping[str, Any], micro_batches: int) -> str:
    """Return a layout as `--layout` has it, with further words where paralab cannot train it (zb-h2 ...)."""
    degrees = [f"{name}{columns[name]}" for name in ("dp", "ep", "cp", "tp", "pp") if columns[name] > 1]
    words = [".".join(degrees) or "dp1"]
    words += [f"zero{columns['zero']}"] if columns["zero"] else []
    words += [f"shard{columns['shard']}"] if columns["shard"] else []
    if columns["schedule"]:
        words += [_schedule(columns), *([f"mb{micro_batches}"] if micro_batches > 1 else [])]
    words += _ends(columns["layers_per_stage"] or ())
    words += ["sp"] if columns["sequence_parallel"] else []
    words += [str(columns["cp_style"])] if columns["cp"] > 1 else []
    return "/".join(words)


def _ends(stages: tuple[int, ...]) -> list[str]:
    """Return the words for the layers of each stage, () for evenly."""
    whole = sum(stages), len(stages)
    if not stages or stages == layers_of_stages(*whole):
        return []
    if stages == layers_of_stages(*whole, first=stages[0], last=stages[-1]):
        return [f"first{stages[0]}", f"last{stages[-1]}"]
    return [f"stages{'-'.join(map(str, stages))}"]  # no word of a layout that is trained


def _schedule(columns: Mapping[str, Any]) -> str:
    name, stages = str(columns["schedule"]), int(columns["vpp"])
    known = SCHEDULES.get(_NAMES.get(name, name))
    if known is not None and (known.fewest is not None or known.stages_per_rank == stages):
        return replace(known, stages_per_rank=stages).word
    return f"{name}x{stages}" if stages > 1 else name


def is_typed(columns: Mapping[str, Any]) -> bool:
    """Return whether paralab trains a layout of these columns, of a model that can be divided so."""
    if columns["recompute"] == "selective" and columns["cp"] > 1:
        return False  # context ranks exchange keys in attention
    return typed_layout(layout_text(columns, 1 << 10)) is not None


@lru_cache(maxsize=4096)
def typed_layout(text: str) -> Layout | None:
    """Return the layout that is written so; None for one that paralab does not train."""
    try:
        return Layout.parse(text)
    except LayoutError:
        return None


def row(found: Found, i: int) -> dict[str, Any]:
    """Return the columns of one layout, as Python's own values."""
    cells = {name: column[i] for name, column in found.columns.items()}
    return {name: cell if isinstance(cell, tuple) else cell.item() for name, cell in cells.items()}


def micro_batches(found: Found, i: int) -> int:
    """Return the micro-batches of a data rank in a step."""
    chosen = row(found, i)
    return int(found.settled.case.global_batch_size) // (chosen["dp"] * chosen["micro_batch_size"])


def name(found: Found, i: int) -> str:
    """Return a layout as it is printed."""
    return layout_text(row(found, i), micro_batches(found, i))


def typed_line(found: Found, model: "Trained") -> str | None:
    """Return the command that trains the fastest layout that fits and that paralab trains; None where there is none.

    Where none fits, of those that fit with a part of their memory on the host.
    """
    if not found.n_fit:
        fitting = offloaded(found, model)
        return None if fitting is None else fitting.line
    known = typed(found, model)
    return None if known is None else known[1]


def typed(found: Found, model: "Trained") -> tuple[int, str] | None:
    """Return the number of that layout, and the command."""
    numbers = chain(found.ranked(SHOWN) if found.n_fit else (), found.order)
    return next(((int(i), line) for i in numbers if (line := line_of(found, int(i), model)) is not None), None)


def is_trained(found: Found, i: int, model: "Trained | None") -> bool:
    """Return whether paralab trains one layout, of a model of its own or of any that can be divided so (None)."""
    if model is not None:
        return line_of(found, i, model) is not None
    return found.settled.case.precision in TRAINED_PRECISIONS and is_typed(row(found, i))


def not_trained(found: Found) -> str:
    """Return the sentence that says what a mark beside a layout means."""
    precision = found.settled.case.precision
    return f"* paralab itself does not train {'this layout' if precision in TRAINED_PRECISIONS else f'in {precision}'}."


def line_of(found: Found, i: int, model: "Trained", word: str = "", flags: tuple[str, ...] = ()) -> str | None:
    """Return the command that trains one layout; None for a layout or a precision that paralab does not train.

    word: that the layout has besides, such as /offload-optimizer. flags: that the command has besides.
    """
    case, chosen, count = found.settled.case, row(found, i), micro_batches(found, i)
    model = model.with_length(int(case.sequence_length))
    is_trained = case.precision in TRAINED_PRECISIONS and is_typed(chosen)
    layout = typed_layout(f"{layout_text(chosen, count)}{word}") if is_trained else None
    if layout is None or not _accepts(model, layout) or (model.spec.whole_batch and count > 1):
        return None
    if chosen["recompute"] == "selective" and not _has_attention(model):
        return None
    words = ["paralab", "run", *model.words, "--layout", str(layout)]
    words += ["--global-batch-size", str(int(case.global_batch_size)), "--precision", str(case.precision)]
    words += ["--accumulation", str(count)] if chosen["pp"] == 1 and count > 1 else []
    words += ["--checkpointing", chosen["recompute"]] if chosen["recompute"] != "none" else []
    return shlex.join([*words, *flags])


@lru_cache(maxsize=4096)
def _accepts(model: "Trained", layout: Layout) -> bool:
    return model.accepts(layout)


@lru_cache(maxsize=64)
def _has_attention(model: "Trained") -> bool:
    return model.has_attention


@dataclass(frozen=True)
class Offloaded:
    """A layout that fits with a part of its memory on the host, where none fits without. what: that part, in words.

    layout: as it is typed. host_gib: that each process takes of the host's memory. line: the command that trains it;
    None where the model is none of paralab's.
    """

    what: str
    layout: str
    step_time_s: float
    memory_gib: float
    host_gib: float
    line: str | None


# what of a training may be in the memory of the host, in words, and how that is typed: of a layout and of a run
OFFLOADS = {
    "optimizer": ("optimizer states", "/offload-optimizer", ()),
    "parameters": ("all states", "/offload-parameters", ()),
    "activations": ("activations", "", ("--checkpointing", "offload")),
}


def offloaded(found: Found, model: "Trained | None") -> Offloaded | None:
    """Return the fastest layout that paralab trains and that fits with a part of its memory on the host; or None."""
    each = [one for what in OFFLOADS if (one := _with(what, found, model)) is not None]
    return min(each, key=lambda one: one.step_time_s, default=None)


def _with(what: str, found: Found, model: "Trained | None") -> Offloaded | None:
    words, word, flags = OFFLOADS[what]
    columns, zero = found.columns, found.columns["zero"]
    alone = (columns["dp"] * columns["cp"] == 1) & (what == "parameters")  # which FSDP takes from the host as well
    zero = np.where(alone, 3, zero)
    legal = {
        "optimizer": zero >= 0,
        "parameters": (zero >= 2) & (columns["pp"] == 1),  # in a pipeline FSDP keeps what it has gathered
        "activations": columns["recompute"] == "none",
    }
    case = found.case.but(zero=zero.astype(float))
    away = case.but(offload=what)
    result = evaluate(away, found.machine)
    fitting = np.flatnonzero(result.fits & legal[what])
    for i in ranked(columns, fitting, result.step_time_s, result.memory_gib, SHOWN):
        typed_as = f"/zero3{word}" if alone[i] else word
        layout = typed_layout(f"{name(found, i)}{typed_as}") if is_trained(found, i, model) else None
        line = None if model is None or layout is None else line_of(found, int(i), model, typed_as, flags)
        if layout is not None and (model is None or line is not None):
            kept = [gib_by_category(one, found.machine) for one in (case, away)]
            here, there = (sum(float(each[name][i]) for name in CATEGORIES[:2]) for each in kept)
            figures = float(result.step_time_s[i]), float(result.memory_gib[i]), here - there
            return Offloaded(words, " ".join([str(layout), *flags]), *figures, line)
    return None


# --- why others lose


def family(found: Found, i: int) -> str:
    """Return the strategy that one layout is of."""
    return str(families({name: column[i : i + 1] for name, column in found.columns.items()})[0])


def losers(found: Found) -> Iterator[tuple[str, int, str]]:
    """Yield (family, number of its best layout, why it is not the answer) for each family but the winner's."""
    best = found.best if found.n_fit else None
    time, memory, fits = found.prediction.step_time_s, found.prediction.memory_gib, found.prediction.fits
    of = families(found.columns)
    for name in FAMILIES:
        mine = np.flatnonzero(of == name)
        if not len(mine) or (best is not None and of[best] == name):
            continue
        fitting = mine[fits[mine]]
        if len(fitting):
            i = int(ranked(found.columns, fitting, time, memory, 1)[0])
            assert best is not None
            yield name, i, _slower(found, i, best)
        else:
            i = int(mine[np.argmin(memory[mine])])
            yield name, i, f"{memory[i]:,.0f} GiB of {found.settled.device.memory_gib:,.0f}: {held(found, i)}"


def _slower(found: Found, i: int, best: int) -> str:
    """Return how much slower than the best layout one is, and what it spends most of the difference on."""
    seconds, again = found.prediction.step_time_s, row(found, i)["recompute"]
    if seconds[i] <= (1 + ALIKE) * seconds[best]:
        return "about as fast"
    most = max(found.causes_s, key=lambda cause: float(found.causes_s[cause][i] - found.causes_s[cause][best]))
    is_again = most in ("compute", "memory") and again not in ("none", row(found, best)["recompute"])
    why = f"{again} recomputation, without which it does not fit" if is_again else _SPENT[most]
    return f"{seconds[i] / seconds[best]:.2f} times as slow: {why}"


def held(found: Found, i: int) -> str:
    """Return what the memory of one layout goes into, largest first."""
    sizes = sorted(((float(found.memory_gib[name][i]), name) for name in CATEGORIES), reverse=True)
    return ", ".join(f"{name} {size:,.0f}" for size, name in sizes if size >= 1)


def families(c: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the strategy that each layout is of, what it divides beside the batch: an array (layouts,) of text.

    c: the columns of the layouts, each an array (layouts,).
    """
    plain = _DATA[c["zero"], (c["shard"] > 0).astype(int)]
    tp, pp = c["tp"] > 1, c["pp"] > 1
    return np.select(
        [c["ep"] > 1, c["cp"] > 1, tp & pp, tp, pp],
        ["experts", "context", "tensor + pipeline", "tensor", "pipeline"],
        plain,
    )
