"""Charts of losses over steps: the curves, and below them how far each is from the reference, on a logarithmic axis.

Curves that coincide are one line with all their names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from paralab.pages.lines import MOST_POINTS, Series, lines, thinned
from paralab.pages.page import Chart
from paralab.pages.palette import UNNAMED, Look

ROUNDING = {"fp64": 2.0**-48, "bf16": 2.0**-4, "fp16": 2.0**-6}  # 16 units in the last place of 1
FP32_ROUNDING = 2.0**-19  # of all others: their losses are summed in fp32
_SEEN = 0.004  # of the height of a chart: lines that are nearer cannot be told apart in it


@dataclass(frozen=True)
class Curve:
    """The losses of a run by step, and those on held-out data. The reference is what others are compared with."""

    label: str
    losses: Mapping[int, float]
    look: Look = UNNAMED
    reference: bool = False
    held_out: Mapping[int, float] = field(default_factory=dict)


def charts_of(curves: Sequence[Curve], *, precision: str | None = None, along: str = "step") -> list[Chart]:
    """Return the chart of the curves that have losses, and where there are two or more that of their distances.

    precision: that of training, which says what rounding is.
    """
    curves = [curve for curve in curves if curve.losses]
    if not curves:
        return []
    losses, distances = _losses(curves, along), []
    if len(curves) > 1:
        distances = _deviations(curves, ROUNDING.get(precision or "", FP32_ROUNDING), along)
        if not distances:
            losses = replace(losses, caption=f"{losses.caption} All losses are equal in every digit.".strip())
    return [losses, *distances]


def _losses(curves: Sequence[Curve], along: str) -> Chart:
    every = [y for curve in curves for y in curve.losses.values()]
    groups = _groups(curves, most=_SEEN * (max(every) - min(every)))
    series = [
        Series(_names(group), _smooth(group[0].losses), look=group[0].look, spots=list(group[0].held_out.items()))
        for group in groups
    ]
    said = [f"One line: {', '.join(curve.label for curve in group)}." for group in groups
            if len(group) > 2]  # fmt: skip
    said += ["Points are losses on held-out data."] if any(curve.held_out for curve in curves) else []
    return Chart("Loss", lines(series, title="Loss", unit=_plain, along=along), " ".join(said))


def _deviations(curves: Sequence[Curve], rounding: float, along: str) -> list[Chart]:
    """Draw how far each curve is from the reference, or from the first, as a share of it."""
    base = next((curve for curve in curves if curve.reference), curves[0])
    others = [curve for curve in curves if curve is not base]
    gaps = {curve.label: _gaps(curve.losses, base.losses) for curve in others}
    same = [curve for curve in others if max(gaps[curve.label].values(), default=0.0) <= rounding]
    groups = [same] if same else []
    groups += _groups([curve for curve in others if curve not in same], share=rounding)
    series = []
    for group in groups:
        # of curves that coincide, the largest distance
        most = {step: max(gaps[curve.label].get(step, 0.0) for curve in group) for step in gaps[group[0].label]}
        series.append(Series(_names(group), _thinned(most), look=group[0].look))
    if not any(y > 0 for one in series for _, y in one.points):
        return []  # of equal losses there is nothing to draw
    title = f"Loss: difference from {base.label}"
    said = ["As a share of its loss; 0 where both are equal in every digit."]
    if same:
        said.append(f"Equal within rounding (below {rounding:.1g}): {', '.join(curve.label for curve in same)}.")
    said += [f"One line: {', '.join(curve.label for curve in group)}." for group in groups
             if len(group) > 2 and group is not same]  # fmt: skip
    drawing = lines(series, title=title, unit=lambda y: f"{y:.0e}", along=along, decades=True)
    return [Chart(title, drawing, " ".join(said))]


def _gaps(losses: Mapping[int, float], base: Mapping[int, float]) -> dict[int, float]:
    steps = sorted(losses.keys() & base.keys())
    return {step: abs(losses[step] - base[step]) / abs(base[step]) for step in steps if base[step]}


def _groups(curves: Sequence[Curve], *, most: float = 0.0, share: float = 0.0) -> list[list[Curve]]:
    """Put curves together that nowhere differ by more than so much, or by more than a share of the loss."""
    groups: list[list[Curve]] = []
    for curve in curves:
        same = next((group for group in groups if _coincide(group[0], curve, most, share)), None)
        if same is None:
            groups.append([curve])
        else:
            same.append(curve)
    return groups


def _coincide(one: Curve, other: Curve, most: float, share: float) -> bool:
    a, b = one.losses, other.losses
    return (
        a.keys() == b.keys()
        and one.held_out == other.held_out
        and all(abs(a[step] - b[step]) <= most + share * abs(a[step]) for step in a)
    )


def _names(group: Sequence[Curve]) -> str:
    names = [curve.label for curve in group]
    return ", ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more"


def _smooth(losses: Mapping[int, float]) -> list[tuple[float, float]]:
    """Return means over equal parts of the steps, as many as a chart can show."""
    steps = sorted(losses)
    size = -(-len(steps) // MOST_POINTS) or 1
    parts = [steps[i : i + size] for i in range(0, len(steps), size)]
    return [(sum(part) / len(part), sum(losses[step] for step in part) / len(part)) for part in parts]


def _thinned(values: Mapping[int, float]) -> list[tuple[float, float]]:
    return thinned([(float(step), values[step]) for step in sorted(values)], MOST_POINTS)


def _plain(value: float) -> str:
    return f"{value:.3g}"
