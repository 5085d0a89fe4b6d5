"""The constants of the planner: fitted values with units, bounds, what each means and where it is from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from paralab.axes.costs import Constants

FILE = Path(__file__).with_name("constants.json")


@dataclass(frozen=True)
class Constant:
    """One constant. prior: expected before the fit, with a spread in log units. low, high: what is plausible."""

    value: float
    prior: float
    low: float
    high: float
    spread: float
    unit: str
    meaning: str
    source: str


@cache
def described() -> Mapping[str, Constant]:
    """Return every constant, by name."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: Constant(**values) for name, values in content.items()}


@cache
def shipped() -> Constants:
    """Return the values that predictions are made with."""
    return Constants({name: constant.value for name, constant in described().items()})
