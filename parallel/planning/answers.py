"""What a search found, in words and lines: the layout as it is typed, and why others lose."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from paralab.planning.breakdown import CATEGORIES
from paralab.planning.search import Found

# Schedules of the contract as `--layout` has them; what is not here is predicted, and not trained by paralab.
TYPED = {"": "", "gpipe": "gpipe", "1f1b": "1f1b", "interleaved": "interleaved", "zbv": "zbv", "dualpipev": "dualpipev"}
FAMILIES = ("ddp", "zero1", "zero2", "zero3", "tensor", "pipeline", "tensor + pipeline", "context", "experts")


def layout_text(columns: Mapping[str, Any], micro_batches: int) -> str:
    """Return a layout as `--layout` has it, with further words where paralab cannot train it (cp, ep, zb-h1 ...)."""
    degrees = [f"{name}{columns[name]}" for name in ("dp", "tp", "pp", "cp") if columns[name] > 1]
    words = [".".join(degrees) or "dp1"]
    words += [f"zero{columns['zero']}"] if columns["zero"] else []
    if columns["schedule"]:
        words.append(str(columns["schedule"]) + (f"x{columns['vpp']}" if columns["vpp"] > 2 else ""))
        words.append(f"mb{micro_batches}")
    words += ["sp"] if columns["sequence_parallel"] else []
    words += [f"ep{columns['ep']}"] if columns["ep"] > 1 else []
    return "/".join(words)


def is_typed(columns: Mapping[str, Any]) -> bool:
    """Return whether paralab trains a layout of these columns."""
    schedule = str(columns["schedule"])
    known = schedule in TYPED and (schedule != "interleaved" or columns["vpp"] == 2)
    return known and columns["cp"] == columns["ep"] == 1 and columns["recompute"] != "selective"


_PRECISIONS = ("fp32", "bf16", "fp16")  # of those that are predicted, the ones that paralab trains in


def row(found: Found, i: int) -> dict[str, Any]:
    """Return the columns of one layout, as Python's own values."""
    return {name: column[i].item() for name, column in found.columns.items()}


def micro_batches(found: Found, i: int) -> int:
    """Return the micro-batches of a data rank in a step."""
    chosen = row(found, i)
    return int(found.settled.case.global_batch_size) // (chosen["dp"] * chosen["micro_batch_size"])


def typed_line(found: Found, model: Sequence[str]) -> str | None:
    """Return the command that trains the fastest layout that fits and that paralab trains; None where there is none.

    model: the words that name the model.
    """
    for i in found.order if found.settled.case.precision in _PRECISIONS else ():
        chosen = row(found, i)
        if is_typed(chosen):
            case, count = found.settled.case, micro_batches(found, i)
            words = ["paralab run", *model, "--layout", layout_text(chosen, count)]
            words += ["--global-batch-size", str(int(case.global_batch_size)), "--precision", str(case.precision)]
            words += ["--accumulation", str(count)] if chosen["pp"] == 1 and count > 1 else []
            words += ["--checkpointing", "full"] if chosen["recompute"] == "full" else []
            return " ".join(words)
    return None


# --- why others lose


def family(chosen: Mapping[str, Any]) -> str:
    """Return the strategy that a layout is of: what it divides beside the batch."""
    if chosen["ep"] > 1:
        return "experts"
    if chosen["cp"] > 1:
        return "context"
    both = (chosen["tp"] > 1, chosen["pp"] > 1)
    if any(both):
        return {(True, False): "tensor", (False, True): "pipeline", (True, True): "tensor + pipeline"}[both]
    return f"zero{chosen['zero']}" if chosen["zero"] else "ddp"


def losers(found: Found) -> Iterator[tuple[str, int, str]]:
    """Yield (family, number of its best layout, why it is not the answer) for each family but the winner's."""
    best = found.order[0] if len(found.order) else None
    time, memory, fits = found.prediction.step_time_s, found.prediction.memory_gib, found.prediction.fits
    of = _families(found)
    for name in FAMILIES:
        mine = np.flatnonzero(of == name)
        if not len(mine) or (best is not None and of[best] == name):
            continue
        fitting = mine[fits[mine]]
        if len(fitting):
            i = int(fitting[np.argmin(time[fitting])])
            assert best is not None
            yield name, i, f"{time[i] / time[best]:.2f} times as slow: {found.prediction.bound[i]}"
        else:
            i = int(mine[np.argmin(memory[mine])])
            yield name, i, f"{memory[i]:,.0f} GiB of {found.settled.device.memory_gib:,.0f}: {held(found, i)}"


def held(found: Found, i: int) -> str:
    """Return what the memory of one layout goes into, largest first."""
    sizes = sorted(((float(found.memory_gib[name][i]), name) for name in CATEGORIES), reverse=True)
    return ", ".join(f"{name} {size:,.0f}" for size, name in sizes if size >= 1)


def _families(found: Found) -> np.ndarray:
    c = found.columns
    plain = np.where(c["zero"] > 0, np.char.add("zero", c["zero"].astype(str)), "ddp")
    split = np.select(
        [(c["tp"] > 1) & (c["pp"] > 1), c["tp"] > 1, c["pp"] > 1], ["tensor + pipeline", "tensor", "pipeline"], plain
    )
    return np.select([c["ep"] > 1, c["cp"] > 1], ["experts", "context"], split)
