"""A plan as one HTML page that opens offline, drawn by what draws the reports of measurements."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paralab.console.phases import Phases
from paralab.pages import page
from paralab.planning import answers, checked, page_tables, pictures, records, report, scale
from paralab.planning.cases import SHOWN
from paralab.planning.hardware import Device
from paralab.planning.pictures import gib
from paralab.planning.scale import OPTIMAL_TOKENS, Training
from paralab.planning.solving import Solved

if TYPE_CHECKING:
    from paralab.planning.shapes import Trained

TEMPLATE = Path(__file__).with_name("plan.html")


def render(
    solved: Solved,
    raw: Mapping[str, Any],
    model: "Trained | None",
    own: Mapping[str, Device],
    gpu: str,
    numbers: np.ndarray,
    phases: Phases | None = None,
) -> str:
    """Return the page. numbers: of the layouts that are carried inside it, an array, best first.

    phases: shows how far it is.
    """
    found = solved.found
    fits, unit = bool(found.n_fit), scale.unit(found)
    head = list(report.head(found, raw, model))
    rows = records.rows(found, found.ranked(min(SHOWN, len(numbers))), model)
    scaled = pictures.scaling(found, raw, own, gpu, phases) if fits else []
    charts = [pictures.against_memory(found, unit), pictures.memory(found)]
    charts += [pictures.causes(found), pictures.ranges(found)]
    charts += [chart] if (chart := pictures.efficiency(scaled)) else []
    content = records.as_csv(found, numbers, model)
    return page.render(
        TEMPLATE,
        title=f"Plan: {head[0]}",
        head=head,
        answer=[*solved.said, *_answer(solved, raw, model, own, gpu, unit)],
        typed=answers.typed_line(found, model) if model is not None else None,
        marked=answers.not_trained(found) if not all(row["trained_by_paralab"] for row in rows) else "",
        caveats=list(_caveats(solved)),
        layouts=page_tables.of_layouts(rows, unit=unit, share=f"{checked.SHARE:.0%}", fits=fits),
        uneven=any(row["layers_per_stage"] for row in rows),
        charts=charts,
        others=page_tables.of_others((name, answers.name(found, i), why) for name, i, why in answers.losers(found)),
        scaled=page_tables.of_scaling(scaled, unit=unit),
        training=[page_tables.of_facts(title, facts) for title, facts in (_training(solved) if fits else {}).items()],
        inputs=page_tables.of_inputs(_inputs(solved, raw)),
        downloads=[page.download("plan.csv", content, kind="text/csv")],
    )


def _answer(
    solved: Solved, raw: Mapping[str, Any], model: "Trained | None", own: Mapping[str, Device], gpu: str, unit: str
) -> Iterator[str]:
    found = solved.found
    if not found.n_fit:
        yield f"No layout fits. The closest is {answers.name(found, found.best)}:"
        yield from report.what_would(found, raw, model, own, gpu)
        return
    i = found.best
    result, (low, high) = found.prediction, (float(edge[i]) for edge in found.range_s)
    seconds = float(result.step_time_s[i])
    rate = scale.units_per_step(found) / seconds
    yield f"{answers.name(found, i)} is the fastest of {found.n_fit:,} layouts that fit."
    yield (
        f"A step takes {pictures.seconds(seconds)} ({pictures.seconds(low)} to {pictures.seconds(high)}): "
        f"{rate:,.0f} {unit}/s, {float(result.mfu[i]):.0%} of the peak. Most of it goes into {result.bound[i]}."
    )
    yield (
        f"The fullest device needs {gib(float(result.memory_gib[i]))} of "
        f"{gib(found.settled.device.memory_gib)}: {answers.held(found, i)}."
    )


def _caveats(solved: Solved) -> Iterator[str]:
    low, high = solved.found.checked_range
    yield solved.found.caveat
    yield (
        f"A range holds {checked.SHARE:.0%} of what was measured where predictions were checked: "
        f"{low:.2f} to {high:.2f} times the prediction"
    )
    if solved.training is None and solved.found.n_fit and scale.unit(solved.found) == "tokens":
        yield f"No length of the training was given: its arithmetic is for {OPTIMAL_TOKENS} tokens a weight"


def _training(solved: Solved) -> dict[str, list[scale.Fact]]:
    found = solved.found
    if solved.training is None and scale.unit(found) != "tokens":
        return {}
    usual = Training(OPTIMAL_TOKENS * scale.n_weights(found), f"taken: {OPTIMAL_TOKENS} a weight: {scale.HOFFMANN}")
    return scale.facts(found, found.best, solved.training or usual)


def _inputs(solved: Solved, raw: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    settled = solved.found.settled
    yield from ((name, records.text(value), "given") for name, value in raw.items())
    assumed = records.assumed(solved.found, raw)
    yield from ((name, records.text(value), "taken where nothing was given") for name, value in assumed.items())
    device = asdict(settled.device)
    yield from ((name, records.text(value), "device") for name, value in device.items() if value is not None)
