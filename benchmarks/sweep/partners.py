"""Which cases of a sweep can be compared with none of the others, found before any of them has run."""

from collections.abc import Sequence

import torch

from paralab.benchmarks.report.work import WORK, Key
from paralab.benchmarks.sweep.cases import Case
from paralab.errors import UsageError
from paralab.planning.resolve import resolve
from paralab.processes.rank import Rank
from paralab.records.describe import describe
from paralab.records.requested import Requested


def check(cases: Sequence[Case], within: str) -> None:
    """Say which cases can never be decided, for want of another that does the same work. within: of --until-decided.

    Raises: UsageError where none can.
    """
    alone = without_partner(cases)
    if len(alone) == len(cases):
        raise UsageError(
            f"--until-decided {within}: no two cases of this sweep do the same work on as many processes, so there is "
            "nothing to decide: give two or more --strategies, --layouts or --engines for one of them, or leave it out"
        )
    for case in alone:
        print(f"{case.name} is compared with nothing: no other case does the same work on as many processes")


def without_partner(cases: Sequence[Case]) -> list[Case]:
    """Return the cases whose work no other one does in another way."""
    ways: dict[Key, set[str]] = {}
    keys = [_work(case) for case in cases]
    for case, key in zip(cases, keys, strict=True):
        ways.setdefault(key, set()).add(case.command)
    return [case for case, key in zip(cases, keys, strict=True) if len(ways[key]) == 1]


def _work(case: Case) -> Key:
    """Return what the rows of a case will say of its work."""
    rank = Rank.from_env()
    values = describe(resolve(case.config), Requested.of(case.config, rank), rank, torch.device("cpu"))
    return tuple(values.get(column.name) for column in WORK)
