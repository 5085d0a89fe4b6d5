"""All that is known of the layouts of a search, as rows of a CSV file or as JSON."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from paralab.planning import answers, cases, checked, scale
from paralab.planning.breakdown import CATEGORIES
from paralab.planning.candidates import CHOSEN
from paralab.planning.search import Found
from paralab.planning.solving import Solved
from paralab.planning.steptime import BOUNDS

if TYPE_CHECKING:
    from paralab.planning.shapes import Trained


def record(found: Found, rank: int, i: int, model: "Trained | None") -> dict[str, Any]:
    """Return one layout with all that is predicted of it, units in the names. rank: its place, from 1.

    model: that is to be trained; None for shapes that no model of paralab has.
    """
    chosen, result = answers.row(found, i), found.prediction
    seconds = float(result.step_time_s[i])
    return {
        "rank": rank,
        "layout": answers.name(found, i),
        **{name: chosen[name] for name in CHOSEN},
        "step_time_s": seconds,
        "step_time_low_s": float(found.range_s[0][i]),
        "step_time_high_s": float(found.range_s[1][i]),
        f"{scale.unit(found)}_per_s": scale.units_per_step(found) / seconds,
        "mfu": float(result.mfu[i]),
        "bound": str(result.bound[i]),
        "fits": bool(result.fits[i]),
        "memory_gib": float(result.memory_gib[i]),
        **{f"{name.replace(' ', '_')}_gib": float(found.memory_gib[name][i]) for name in CATEGORIES},
        **{f"{name}_s": float(found.causes_s[name][i]) for name in BOUNDS},
        "trained_by_paralab": answers.is_trained(found, i, model),
    }


def rows(found: Found, numbers: Iterable[Any], model: "Trained | None") -> list[dict[str, Any]]:
    """Return the records of some layouts, best first. numbers: of the layouts."""
    return [record(found, rank, int(i), model) for rank, i in enumerate(numbers, 1)]


def as_csv(found: Found, numbers: Iterable[Any], model: "Trained | None") -> bytes:
    """Return a CSV file of some layouts, numbers to six digits."""
    made = rows(found, numbers, model)
    return cases.write(list(made[0]), [[text(value) for value in one.values()] for one in made])


def as_json(solved: Solved, numbers: Iterable[Any], *, model: "Trained | None", raw: Mapping[str, Any]) -> bytes:
    """Return a JSON document: the question, the layouts, why others lose, and the arithmetic of the training."""
    found, training = solved.found, solved.training
    best = found.best if found.n_fit else None
    device = asdict(found.settled.device)
    low, high = found.checked_range
    document = {
        "question": dict(raw),
        "assumed": assumed(found, raw),
        "device": device,
        "weights": scale.n_weights(found),
        "layouts_looked_at": len(found),
        "layouts_that_fit": found.n_fit,
        "layouts": rows(found, numbers, model),
        "others": [
            {"family": name, "layout": answers.name(found, i), "why": why} for name, i, why in answers.losers(found)
        ],
        "command": None if model is None else answers.typed_line(found, model),
        "solved_for": list(solved.said),
        "training": []
        if training is None or best is None
        else [
            {"group": title, **asdict(fact)}
            for title, group in scale.facts(found, best, training).items()
            for fact in group
        ],
        "step_time_range": {"share_of_cases": checked.SHARE, "low": low, "high": high},
        "checked": found.caveat,
    }
    return (json.dumps(document, indent=1, default=_plain) + "\n").encode()


def assumed(found: Found, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was taken for columns that were not given, apart from the layout's."""
    taken = {name: value for name, value in found.settled.assumed.items() if name not in CHOSEN}
    batch = {"global_batch_size": int(found.settled.case.global_batch_size)}
    return taken if "global_batch_size" in raw else batch | taken


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def text(value: object) -> str:
    """Return the cell of a value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ";".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
