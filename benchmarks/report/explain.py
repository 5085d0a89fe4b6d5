"""Where the difference between the step times of two variants comes from, part by part.

A run's parts are what its slowest rank does in a step (`step_parts_json`). Those of a variant are the mean shares of
its good runs, of its median step time: so the parts of each add up to its step, and their differences to the difference
of the medians.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

import numpy as np

from paralab.benchmarks.report import stats
from paralab.benchmarks.report.families import Family
from paralab.benchmarks.report.metrics import STEP_TIME
from paralab.benchmarks.report.slowest import LOOKS, name_of, parts_s
from paralab.benchmarks.report.variants import Variant
from paralab.console.lines import paragraph
from paralab.console.quantities import interval_text, time_text, times_on
from paralab.pages import charts
from paralab.pages.marks import signed
from paralab.pages.page import Chart
from paralab.pages.palette import UNNAMED
from paralab.records.cells import one_line

_LEAST_DRAWN = 0.005  # of a step: what adds less is drawn as one part with the others


@dataclass(frozen=True)
class Part:
    """One part of a step of both variants, in seconds."""

    name: str
    base_s: float
    other_s: float
    interval_s: tuple[float, float] | None = None  # 95%, of how much more; None of too few runs

    @property
    def more_s(self) -> float:
        return self.other_s - self.base_s


@dataclass(frozen=True)
class Explanation:
    """What the difference of two variants is made of. Without parts, `unknown` says why there are none."""

    base: str
    other: str
    parts: tuple[Part, ...] = ()
    unknown: str = ""

    @property
    def base_s(self) -> float:
        return sum(part.base_s for part in self.parts)

    @property
    def other_s(self) -> float:
        return sum(part.other_s for part in self.parts)


def explain(base: Variant, other: Variant) -> Explanation:
    """Return the parts of both, those that differ most first."""
    mine, theirs = _parts_of(base), _parts_of(other)
    if missing := [variant.label for variant, parts in ((base, mine), (other, theirs)) if not parts]:
        unknown = f"no good run of {' and none of '.join(missing)} says where its time went: run it again"
        return Explanation(base.label, other.label, unknown=unknown)
    names = list(dict.fromkeys((*mine, *theirs)))
    intervals = _intervals(base, other, names)
    parts = [
        Part(name_of(name), mine.get(name, 0.0), theirs.get(name, 0.0), interval)
        for name, interval in zip(names, intervals, strict=True)
    ]
    return Explanation(base.label, other.label, tuple(sorted(parts, key=lambda part: -abs(part.more_s))))


def of_families(families: Sequence[Family]) -> list[Explanation]:
    """Return an explanation for each variant that was compared with a baseline."""
    return [explain(family.base, other) for family in families for other in family.others]


def _intervals(base: Variant, other: Variant, names: Sequence[str]) -> Sequence[tuple[float, float] | None]:
    """Return the bootstrap interval of how much more each part takes; none where one of the two has too few runs."""
    rng = np.random.default_rng(0)
    sides = []
    for variant in (base, other):
        runs = [(run, parts) for run in variant.measured(STEP_TIME) if sum((parts := parts_s(run)).values()) > 0]
        if len(runs) < stats.FEWEST_RUNS:
            return [None] * len(names)
        steps_s = np.array([getattr(run, STEP_TIME.column) for run, _ in runs])  # (runs,)
        shares = np.array([[parts.get(name, 0.0) / sum(parts.values()) for name in names] for _, parts in runs])
        chosen = rng.integers(len(runs), size=(stats.RESAMPLES, len(runs)))
        sides.append(np.median(steps_s[chosen], axis=1)[:, None] * shares[chosen].mean(axis=1))  # (resamples, names)
    low, high = np.percentile(sides[1] - sides[0], [2.5, 97.5], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _parts_of(variant: Variant) -> dict[str, float]:
    """Return the seconds of each part of a variant's median step; empty where they are not known."""
    known = [parts for run in variant.measured(STEP_TIME) if sum((parts := parts_s(run)).values()) > 0]
    if not known:
        return {}
    step_s = stats.median(variant.samples(STEP_TIME))
    shares: dict[str, float] = {}
    for parts in known:
        whole_s = sum(parts.values())
        for part, s in parts.items():
            shares[part] = shares.get(part, 0.0) + s / whole_s / len(known)
    return {part: share * step_s for part, share in shares.items()}


def lines(explanation: Explanation) -> list[str]:
    """Return the explanation for people: what the baseline takes, what each part adds, and what the other takes."""
    names = f"{one_line(explanation.base)} -> {one_line(explanation.other)}"
    if explanation.unknown:
        return [f"{names}: {one_line(explanation.unknown)}"]
    rows = [
        ("a step of the baseline", time_text(explanation.base_s), ""),
        *((one_line(part.name), signed(part.more_s, time_text), _between(part)) for part in explanation.parts),
        ("a step of the other", time_text(explanation.other_s), ""),
    ]
    wide, number = (max(len(row[i]) for row in rows) for i in range(2))
    said = [f"  {name.ljust(wide)}  {figure.rjust(number)}  {between}".rstrip() for name, figure, between in rows]
    known = any(part.interval_s for part in explanation.parts)
    return [f"where the difference comes from, {names}{', with 95% intervals' if known else ''}", *said]


def _between(part: Part) -> str:
    return "" if part.interval_s is None else f"[{interval_text(part.interval_s)}]"


def text(explanations: Sequence[Explanation]) -> str:
    """Return all explanations, a paragraph each."""
    wrapped = ([paragraph(line, after="    ") for line in lines(explanation)] for explanation in explanations)
    return "".join("\n" + "\n".join(each) + "\n" for each in wrapped)


def markdown(explanations: Sequence[Explanation]) -> str:
    """Return all explanations as code blocks."""
    blocks = ("\n".join(lines(explanation)).replace("```", "'''") for explanation in explanations)
    return "".join(f"\n```\n{block}\n```\n" for block in blocks)


def with_json(found: str, explanations: Sequence[Explanation]) -> str:
    """Return a JSON object with the explanations in it."""
    told = [asdict(explanation) for explanation in explanations]
    return json.dumps(json.loads(found) | {"explanations": told}, indent=2, allow_nan=False) + "\n"


def chart(explanation: Explanation, *, reach: float) -> Chart | None:
    """Draw a waterfall from the step of the baseline to that of the other; nothing where the parts are not known.

    reach: seconds that the axis holds at least, so that several have one scale.
    """
    if explanation.unknown:
        return None
    steps = [
        charts.Step(part.name, part.more_s, LOOKS.get(part.name, UNNAMED), part.interval_s)
        for part in _worth_drawing(explanation)
    ]
    ends = (explanation.base, explanation.base_s), (explanation.other, explanation.other_s)
    title = f"From {explanation.base} to {explanation.other}"
    drawing = charts.waterfall(
        *ends, steps, title=title, unit=times_on(max(reach, reached_s(explanation))), reach=[reach]
    )
    known = " Thin lines are 95% intervals." if any(step.interval for step in steps) else ""
    return Chart(title, drawing, f"What each part of the slowest rank's step adds, or saves.{known}")


def _worth_drawing(explanation: Explanation) -> list[Part]:
    """Return the parts that are seen in a chart, and the sum of those that are too small for that as one more."""
    least_s = _LEAST_DRAWN * max(explanation.base_s, explanation.other_s)
    small = [part for part in explanation.parts if abs(part.more_s) < least_s]
    if len(small) < 2:
        return [part for part in explanation.parts if part.more_s]
    rest = Part("the rest", sum(part.base_s for part in small), sum(part.other_s for part in small))
    return [*(part for part in explanation.parts if part not in small), *([rest] if rest.more_s else [])]


def reached_s(explanation: Explanation) -> float:
    """Return the largest of the seconds that its waterfall passes."""
    on_the_way = accumulate((part.more_s for part in explanation.parts), initial=explanation.base_s)
    return max(on_the_way)


WITH = {
    "text": lambda found, explanations: found + text(explanations),
    "markdown": lambda found, explanations: found + markdown(explanations),
    "json": with_json,
}
