"""Which variant is compared with which: each with the baseline that differs from it in one thing.

Those that share a baseline are a family, and p values are corrected for the size of the family (Holm).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from paralab.benchmarks.report import stats, work
from paralab.benchmarks.report.comparison import Comparison
from paralab.benchmarks.report.metrics import Metric
from paralab.benchmarks.report.variants import Variant, cell, example
from paralab.benchmarks.report.verdict import concluded, judged, measured
from paralab.benchmarks.report.work import METHOD


@dataclass(frozen=True)
class Factor:
    """What may vary between variants: columns that change together. Without columns it is the file."""

    columns: tuple[str, ...]


# what changes of itself when one of these does
_DIVISION = ("micro_batch_size", "accumulation")
FOLLOWS = {
    **dict.fromkeys(("strategy", "layout"), ("strategy", "layout", *_DIVISION)),
    **dict.fromkeys(_DIVISION, _DIVISION),
}
_FILE, _STRATEGY = Factor(()), Factor(FOLLOWS["strategy"])
# in the order in which a baseline is looked for: the same in another file, under another engine ... at last strategy
_FACTORS = (_FILE, *(Factor((c.name,)) for c in METHOD if c.name not in _STRATEGY.columns), _STRATEGY)


@dataclass(frozen=True)
class Family:
    """Variants that are compared with one baseline, from which they differ in one thing where that is possible."""

    base: Variant
    others: tuple[Variant, ...]

    def compare(self, metric: Metric, *, name: str) -> list[Comparison]:
        """Compare each with the baseline; p values are corrected for how many there are."""
        found = [measured(self.base, other, metric, name, tests=len(self.others)) for other in self.others]
        tested = [i for i, comparison in enumerate(found) if comparison.p is not None]
        looked_once = [i for i in tested if not found[i].looked_often]  # the others are corrected
        for column in ("p_independent", "p", "p_equivalent"):
            known = [i for i in looked_once if getattr(found[i], column) is not None]
            corrected = stats.holm([getattr(found[i], column) for i in known])
            for i, p in zip(known, corrected, strict=True):
                corrections: dict[str, Any] = {column: p}
                found[i] = replace(found[i], **corrections)
        for i in tested:
            found[i] = judged(found[i], metric, tests=len(tested))
        return [concluded(comparison) for comparison in found]


def families(ways: Sequence[Variant]) -> list[Family]:
    """Give every variant of one piece of work but one a baseline, which differs from it in as little as possible."""
    found, remaining = [], list(ways)
    for factor in _FACTORS:
        for group in alike_but_for(remaining, factor):
            if len(group) > 1:
                found.append(_family(group, base_of(group)))
                compared = set(map(id, found[-1].others))
                remaining = [way for way in remaining if id(way) not in compared]
    if len(remaining) > 1:
        found.append(_family(remaining, base_of(remaining)))
    return found


def base_of(ways: Sequence[Variant]) -> Variant:
    """Choose what others are compared with: one process, else plain data parallelism, else the first that ran."""
    good = [way for way in ways if way.good] or list(ways)
    names = [cell(way, METHOD[0]) for way in good]
    return next((good[names.index(name)] for name in ("single", "ddp") if name in names), good[0])


def _family(group: Sequence[Variant], base: Variant) -> Family:
    return Family(base, tuple(way for way in group if way is not base))


def alike_but_for(ways: Sequence[Variant], factor: Factor) -> list[list[Variant]]:
    """Group variants that agree in everything except one factor."""
    columns = [column for column in METHOD if column.name not in factor.columns]
    by_file: dict[str | None, list[Variant]] = {}
    for way in ways:
        by_file.setdefault(None if factor is _FILE else way.file, []).append(way)
    found = []
    for part in by_file.values():
        owner = {id(example(way)): way for way in part}
        found += [[owner[id(run)] for run in runs] for runs in work.group(map(example, part), columns).values()]
    return found
