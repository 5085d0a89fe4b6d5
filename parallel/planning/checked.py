"""How far off predictions were where they were checked: a prediction is never shown without it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("checked.json")
SHARE = 0.8  # of the cases that were checked, whose measured time lies in the range that is shown


@dataclass(frozen=True)
class Errors:
    """Errors on one published table, in percent of what was measured. cases: how many. kendall: of layouts in order.

    regret_percent: how much slower the layout predicted to be fastest is than the fastest one, on average.
    constant_share_percent, constant_share_kendall: mean error and order of a prediction that only knows FLOPs and a
    constant share of the peak, fitted likewise. None where the table cannot say.
    """

    table: str
    cases: int
    mean_percent: float
    median_percent: float
    worst_percent: float
    kendall: float | None = None
    regret_percent: float | None = None
    constant_share_percent: float | None = None
    constant_share_kendall: float | None = None


@cache
def errors(kind: str) -> Mapping[str, Errors]:
    """Return the errors by table. kind: `step_time`, `step_time_shipped`, `memory`, `memory_shipped`, `images`.

    The constants behind `step_time` and `memory` were fitted without the table in question, the shipped ones with all.
    """
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return {table: Errors(table, **values) for table, values in content[kind].items()}


@cache
def step_time_range(arch: str) -> tuple[float, float]:
    """Return the lowest and the highest ratio of measured to predicted step time among `SHARE` of what was checked.

    arch: the generation of the device; the tables of all generations stand for one that has no table of its own.
    "images": of models that were counted, and not described by the shape of a transformer.
    """
    content = json.loads(FILE.read_text(encoding="utf-8"))["step_time_ratio"]
    low, high = content.get(arch, content["all"])
    return low, high


def is_checked(arch: str) -> bool:
    """Return whether a table of measurements has devices of this generation."""
    return arch in json.loads(FILE.read_text(encoding="utf-8"))["step_time_ratio"]


def memory_error() -> float:
    """Return by what share of itself memory was off on the worse table, on average."""
    return max(one.mean_percent for one in errors("memory").values()) / 100


def sentence() -> str:
    """Return the line that goes with every prediction."""
    time, memory = errors("step_time").values(), errors("memory").values()
    means, of_memory = (sorted(one.mean_percent for one in tables) for tables in (time, memory))
    return (
        f"On {len(means)} published tables that its constants were not fitted on, step time was off by "
        f"{means[0]:.0f} to {means[-1]:.0f}% on average ({sum(means) / len(means):.0f}% over all tables), "
        f"and memory by {of_memory[0]:.0f} to {of_memory[-1]:.0f}%: docs/planner.md"
    )


def sentence_of_images() -> str:
    """Return the line that goes with predictions of models that were counted on their own modules."""
    (one,) = errors("images").values()
    return (
        f"On {one.cases} published trainings of ResNets that no constant was fitted on, step time was off by "
        f"{one.mean_percent:.0f}% on average and {one.worst_percent:.0f}% at worst; memory, and other models than "
        "transformers of texts, were not checked: docs/planner.md"
    )
