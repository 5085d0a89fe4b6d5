"""What to type where no layout is legal: the closest layouts that are, or a batch that divides."""

from collections.abc import Mapping

import numpy as np

from paralab.errors import UsageError
from paralab.planning import answers
from paralab.planning.candidates import CHOSEN, is_divided
from paralab.planning.cases import Raw
from paralab.planning.hardware import Device
from paralab.planning.ranking import DEGREES
from paralab.planning.search import Found, search

SHOWN = 3  # layouts
_NUMBERS = (*DEGREES, "vpp", "micro_batch_size")


def why_none(raw: Raw, own: Mapping[str, Device] | None, gpu: str) -> str:
    """Return what keeps a question from having a layout, and what comes closest to it. raw: with its batch."""
    given = {name: raw[name] for name in CHOSEN if name in raw}
    n, batch, heads = raw["n_gpus"], raw["global_batch_size"], raw.get("heads")
    said = f"no layout of {n} GPUs divides global_batch_size={batch}, heads={heads} and layers={raw.get('layers')}"
    if not given:
        fewer = next((m for m in range(int(n) - 1, 0, -1) if is_divided({**raw, "n_gpus": m})), 1)
        return f"{said}: use a batch such as {-(-int(batch) // int(n)) * int(n)}, or {fewer} GPU{'s' * (fewer > 1)}"
    said += f" with {', '.join(f'{name}={value}' for name, value in given.items())}"
    try:
        found = search({name: value for name, value in raw.items() if name not in CHOSEN}, own, gpu)
    except UsageError:
        return f"{said}: use another number of GPUs or batch, or leave more of the layout empty"
    return f"{said}: the closest that work are {', '.join(_closest(found, given))}"


def _closest(found: Found, given: Raw) -> list[str]:
    """Return layouts by how far they are from what was given; of equally close ones those that fit, the fastest first,
    one of the same degrees.

    A degree that is twice as large or half as large is one step away, another word half a step.
    """
    away = np.zeros(len(found))
    for name, wanted in given.items():
        column = found.columns[name]
        if name in _NUMBERS:
            away += np.abs(np.log2(column / wanted))
        else:
            away += 0.5 * np.array([value != wanted for value in column.tolist()])
    order = np.lexsort((found.prediction.step_time_s, ~found.prediction.fits, away))
    shown: dict[tuple[int, ...], str] = {}
    for i in order[:1000]:
        degrees = tuple(int(found.columns[name][i]) for name in DEGREES)
        if degrees not in shown and len(shown) < SHOWN:
            shown[degrees] = answers.name(found, int(i))
    return list(shown.values())
