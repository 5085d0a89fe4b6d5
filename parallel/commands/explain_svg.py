"""The picture of a step as an SVG: ranks side by side, time from top to bottom."""

import textwrap
from collections.abc import Iterator
from functools import partial
from html import escape

from paralab.axes.axis import MOMENTS
from paralab.commands.explain_step import HELD, Explained, Passes, Sending
from paralab.commands.explain_text import DURING, apart, number, rows, share, words
from paralab.console.quantities import size_unit
from paralab.measure.timeline import PlannedPass

WIDTH, LABEL, MARGIN = 880, 264, 20
ROW, BAR = 30, 20  # heights of a line, and of what is drawn on it

STYLE = """
.paper { fill: #ffffff; stroke: #d0d7de; }
.band { fill: #f6f8fa; }
.whole { fill: #ffffff; stroke: #8c959f; }
.share { fill: #a5d0f3; }
.lane { stroke: #d0d7de; }
.together { stroke: #0969da; stroke-width: 2; }
.one-way { stroke-dasharray: 4 4; }
.node { fill: #ffffff; stroke: #0969da; stroke-width: 1.4; }
.F { fill: #8fc4e8; stroke: #ffffff; }
.B, .I { fill: #f2b48c; stroke: #ffffff; }
.W { fill: #9fdcc6; stroke: #ffffff; }
text { font: 12px Helvetica, Arial, "Liberation Sans", sans-serif; fill: #1f2328; }
.title { font-size: 16px; font-weight: bold; }
.head { font-weight: bold; }
.quiet { fill: #57606a; font-size: 11px; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
"""


def picture(step: Explained) -> str:
    """Return the SVG of a step."""
    lines, y = [], MARGIN + 12
    parts = [partial(draw, step) for draw in (_title, _held, _moments)] + [partial(_passes, one) for one in step.passes]
    for draw in parts:
        drawn, y = draw(y)
        lines += drawn
    height = y + MARGIN - 12
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
            f"<title>{escape(step.title)}: what each rank holds and sends</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
            *lines,
            "</svg>",
            "",
        ]
    )


Drawn = tuple[list[str], int]  # elements, and where the next part starts


def _title(step: Explained, y: int) -> Drawn:
    return [_text(MARGIN, y, step.title, "title"), _text(MARGIN, y + 18, step.subtitle, "quiet")], y + 50


def _held(step: Explained, y: int) -> Drawn:
    """Draw the head of the lanes, and a bar for each rank of all that it holds beside what one process would."""
    scale, unit = size_unit(value for of in (*(lane.held for lane in step.lanes), step.alone) for value in of.values())
    lines = [_text(MARGIN, y, f"Held, {unit}", "head"), _text(LABEL - 8, y, "alone", "quiet end")]
    for i, lane in enumerate(step.lanes):
        place = " ".join(f"{axis}{at}" for axis, at in lane.place.items())
        lines += [_text(_centre(i, step), y, f"rank {lane.rank}", "head middle")]
        lines += [_text(_centre(i, step), y + 15, place, "quiet middle")]
        lines += [_text(_centre(i, step), y + 30, f"samples {rows(lane.rows)}", "quiet middle")]
    y += 38
    for name, when in HELD.items():
        if any(name in lane.held for lane in step.lanes):
            lines += [_text(MARGIN, y + 14, name), _text(MARGIN + 84, y + 14, when, "quiet")]
            lines += [_text(LABEL - 8, y + 14, number(step.alone[name], scale), "end")] if name in step.alone else []
            for i in range(len(step.lanes)):
                lines += _bar(step, i, name, y, scale)
            y += ROW - 4
    return lines, y + ROW


def _bar(step: Explained, lane: int, name: str, y: int, scale: int) -> Iterator[str]:
    held = step.lanes[lane].held.get(name)
    width = round(_lane_width(step) * 0.84)
    x, filled = _centre(lane, step) - width // 2, round(width * share(step.lanes[lane], name, step))
    yield f'<rect class="whole" x="{x}" y="{y}" width="{width}" height="{BAR}"/>'
    yield f'<rect class="share" x="{x}" y="{y}" width="{filled}" height="{BAR}"/>'
    yield _text(_centre(lane, step), y + 14, number(held, scale), "middle")


def _moments(step: Explained, y: int) -> Drawn:
    """Draw a band for each moment, and in it a line for each collective, through the ranks that are in a group."""
    scale, unit = size_unit(float(sent) for sending in step.sendings for sent in sending.sent)
    lines = [_text(MARGIN, y, f"Sent by each rank, {unit}", "head")]
    y += 10
    for number_, when in enumerate(MOMENTS):
        content: list[str] = []
        start, inside = y, y + ROW + 8 * bool(step.at(when))
        for sending in step.at(when):
            drawn, inside = _sending(sending, step, inside, scale)
            content += drawn
        if number_ % 2 == 0:
            lines.append(f'<rect class="band" x="1" y="{start}" width="{WIDTH - 2}" height="{inside - start}"/>')
        lines += [_line(_centre(i, step), start, _centre(i, step), inside, "lane") for i in range(len(step.lanes))]
        lines.append(_text(MARGIN, start + 19, DURING[when] + ("" if step.at(when) else ": nothing"), "head"))
        lines += content
        y = inside
    said = _footnote(step)
    lines += [_text(MARGIN, y + 18 + 15 * i, line, "quiet") for i, line in enumerate(said)]
    return lines, y + 15 * len(said) + ROW


def _sending(sending: Sending, step: Explained, y: int, scale: int) -> Drawn:
    lines = [_text(MARGIN + 12, y + 4, f"{sending.axis}  {words(sending)}")]
    way, beside = "together one-way" if sending.one_way else "together", apart(sending.groups)
    for i, group in ((i, group) for i, line in enumerate(beside) for group in line):
        at = y + i * (ROW - 6)
        lines.append(_line(_centre(group[0], step), at, _centre(group[-1], step), at, way))
        for lane in group:
            said = number(float(sending.sent[lane]), scale) if sending.sent[lane] else ""
            lines += _node(_centre(lane, step), at, said)
    return lines, y + ROW + (len(beside) - 1) * (ROW - 6)


def _node(x: int, y: int, said: str) -> Iterator[str]:
    width, height = (8 * len(said) + 8, 18) if said else (8, 8)
    place = f'x="{x - width // 2}" y="{y - height // 2}" width="{width}" height="{height}" rx="{height // 2}"'
    yield f'<rect class="node" {place}/>'
    yield _text(x, y + 4, said, "middle")


def _footnote(step: Explained) -> list[str]:
    said = f"Bytes as {step.backend} sends them. A line joins ranks that wait for each other."
    if any(sending.one_way for sending in step.sendings):
        said += " Along a dashed line only the receiver waits; an empty node sends nothing."
    if step.lacking:
        said += " Activations and buffers are not known, because there is no dry run of it."
    return textwrap.wrap(said, 140)


def _passes(passes: Passes, y: int) -> Drawn:
    """Draw the passes of each rank along time, and where it waits nothing."""
    end = max(rank[-1].end for rank in passes.ranks)
    lines = [_text(MARGIN, y, f"Passes in time, {passes.lost:.0%} of which a rank waits", "head")]
    y += 12
    for i, rank in enumerate(passes.ranks):
        lines.append(_text(MARGIN + 12, y + 15, f"{passes.axis}{i}"))
        for one in rank:
            lines += _pass(one, y, (WIDTH - MARGIN - 70) / end)
        y += BAR + 6
    said = "Blue: forward of a micro-batch. Orange: backward, twice as long. Green: gradients of weights, where later."
    return [*lines, _text(MARGIN, y + 14, said, "quiet")], y + ROW + 10


def _pass(one: PlannedPass, y: int, unit: float) -> Iterator[str]:
    x, width = 70 + one.start * unit, (one.end - one.start) * unit
    yield f'<rect class="{one.step.kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}"/>'
    if width > 14:
        yield _text(round(x + width / 2), y + 14, str(one.step.micro_batch), "middle")


def _lane_width(step: Explained) -> int:
    return (WIDTH - LABEL - MARGIN) // max(len(step.lanes), 2)


def _centre(lane: int, step: Explained) -> int:
    return LABEL + lane * _lane_width(step) + _lane_width(step) // 2


def _text(x: int, y: int, said: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(said)}</text>'


def _line(x: int, y: int, to_x: int, to_y: int, kind: str) -> str:
    return f'<line class="{kind}" x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}"/>'
