"""The picture of a step for a terminal of 80 columns: ranks side by side, time from top to bottom."""

import textwrap
from collections.abc import Iterator, Sequence

from paralab.axes.axis import MOMENTS, Moment
from paralab.commands.explain_step import HELD, Explained, Lane, Passes, Sending
from paralab.console.lines import MOST, typed
from paralab.console.quantities import GIB, decimals, size_unit

LABEL = 27  # characters before the first lane
DURING: dict[Moment, str] = {
    "forward": "forward",
    "backward": "backward",
    "gradients": "gradients completed",
    "norm": "loss and gradient norm",
    "update": "update",
}
_FULL, _LETTERS = 8, "abcdefghijklmnopqrstuvwxyz"
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def text(step: Explained) -> Iterator[str]:
    """Yield the lines of the picture."""
    yield from (step.title, step.subtitle, "")
    yield from _held(step)
    yield ""
    yield from _moments(step)
    for passes in step.passes:
        yield ""
        yield from _passes(passes)
    yield ""
    yield from _legend(step)


# --- what each rank holds


def _held(step: Explained) -> Iterator[str]:
    scale, unit = size_unit(
        value for held in (*(lane.held for lane in step.lanes), step.alone) for value in held.values()
    )
    rank = "rank" if _lane_width(step) > 7 else "r"
    yield _row(f"Held, {unit}{'alone':>{LABEL - 7 - len(unit)}}", step, [f"{rank} {lane.rank}" for lane in step.lanes])
    for axis in step.lanes[0].place:
        yield _row("", step, [f"{axis}{lane.place[axis]}" for lane in step.lanes])
    spread = any(is_spread(lane.rows) for lane in step.lanes)
    counts = [str(len(lane.rows)) if spread else rows(lane.rows) for lane in step.lanes]
    yield _row("number of samples" if spread else "samples", step, counts)
    for name, when in HELD.items():
        if not any(name in lane.held for lane in step.lanes):
            continue
        alone = f"{number(step.alone[name], scale):>{LABEL - len(name) - 1}}" if name in step.alone else ""
        yield _row(f"{name}{alone}", step, [number(lane.held.get(name), scale) for lane in step.lanes])
        if when:
            shares = [share(lane, name, step) for lane in step.lanes]
            yield _row(f"  {when}", step, [_bar(part, _lane_width(step) - 1) for part in shares])


def share(lane: Lane, name: str, step: Explained) -> float:
    """Return what a rank holds of what one process would, at most 1; of its weights, where that holds none."""
    whole = step.alone.get(name) or step.alone["weights"]
    return min(lane.held.get(name, 0.0) / whole, 1.0)


def _bar(part: float, width: int) -> str:
    eighths = round(part * width * _FULL)
    full, rest = divmod(eighths, _FULL)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width, "·")


# --- what is sent when


def _moments(step: Explained) -> Iterator[str]:
    scale, unit = size_unit(float(sent) for sending in step.sendings for sent in sending.sent)
    yield _row(f"Sent by each rank, {unit}", step, ["│"] * len(step.lanes))
    for when in MOMENTS:
        sendings = step.at(when)
        yield _row(f"{DURING[when]}{'' if sendings else ': nothing'}", step, ["│"] * len(step.lanes))
        for sending in sendings:
            yield from _sending(sending, step, scale)


def _sending(sending: Sending, step: Explained, scale: int) -> Iterator[str]:
    """Yield a line for all groups that are neighbours, and more where groups lie across each other."""
    label = f"  {sending.axis} {words(sending)}"
    for line in apart(sending.groups):
        cells = list(_row("", step, ["│"] * len(step.lanes)).ljust(MOST))
        for group in line:
            _join(cells, group, sending, step, scale)
        label = label.ljust(LABEL)
        yield f"{label}{''.join(cells)[len(label) :]}".rstrip()
        label = ""


def _join(cells: list[str], group: Sequence[int], sending: Sending, step: Explained, scale: int) -> None:
    """Draw a group over the lanes: a line through them, and on it what each of them sends."""
    centres = [_centre(lane, step) for lane in group]
    for x in range(centres[0], centres[-1] + 1):
        cells[x] = "╌" if sending.one_way else "─"
    for lane, x in zip(group, centres, strict=True):
        said = number(float(sending.sent[lane]), scale) if sending.sent[lane] else "○"
        start = x - len(said) // 2
        cells[start : start + len(said)] = said


def apart(groups: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Return the groups in lines, so that those of one line do not lie across each other."""
    lines: list[list[Sequence[int]]] = []
    for group in groups:
        line = next((line for line in lines if line[-1][-1] < group[0]), None)
        if line is None:
            lines.append([group])
        else:
            line.append(group)
    return lines


def words(sending: Sending) -> str:
    """Return what a sending is, and how often a rank does it: all-gather ×9."""
    return f"{sending.op.replace('_', '-')} ×{sending.calls:,}"


# --- the passes of a pipeline


def _passes(passes: Passes) -> Iterator[str]:
    """Yield a line for each rank: a letter for a micro-batch, small in forward and large in backward."""
    ranks = [(f"{passes.axis}{i}  ", rank) for i, rank in enumerate(passes.ranks)]
    yield f"Passes in time, {passes.lost:.0%} of which a rank waits"
    for name, rank in ranks:
        line = ""
        for one in rank:
            letter = _LETTERS[one.step.micro_batch % len(_LETTERS)]
            sign = letter if one.step.kind == "F" else "+" if one.step.kind == "W" else letter.upper()
            line += "·" * (one.start - len(line)) + sign * (one.end - one.start)
        line = line.ljust(max(done[-1].end for done in passes.ranks), "·")
        fits = MOST - len(name) - 2
        yield f"  {name}{line if len(line) <= fits else line[: fits - 1] + '…'}"


# --- words around it


def _legend(step: Explained) -> Iterator[str]:
    said = [
        "Alone is one process that holds everything and trains on all samples; a bar is the share of it that a rank "
        f"holds (buffers: a share of its weights). Bytes are those that {step.backend} sends."
    ]
    if step.sendings:
        said.append("A line joins the ranks of a group: each waits until all of them have come.")
    if any(sending.one_way for sending in step.sendings):
        said.append("Along a dashed line only the receiver waits; a circle sends nothing.")
    if step.passes:
        said.append("a is a forward pass of a micro-batch, AA its backward pass, + gradients of weights, · waiting.")
    if step.lacking:
        said.append(f"Activations and buffers are not known, because there is no dry run: {step.lacking}.")
    yield from textwrap.wrap(" ".join(said), MOST)
    yield from ("", "To measure it:", *typed(step.work.command))


def rows(numbers: Sequence[int]) -> str:
    """Return the samples of a rank: 0-3, or how many there are where they are no neighbours."""
    if is_spread(numbers):
        return f"{len(numbers)} rows"
    return f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


def is_spread(numbers: Sequence[int]) -> bool:
    """Return whether there are others between the samples of a rank."""
    return numbers[-1] - numbers[0] != len(numbers) - 1


def number(size: float | None, scale: int) -> str:
    """Return bytes in a unit: KiB and MiB with one decimal, GiB with two below a hundred."""
    if size is None:
        return "?"
    if scale == GIB and size < 100 * GIB:
        return decimals(size / GIB, 2)
    return decimals(size / scale, 1)


def _lane_width(step: Explained) -> int:
    return min(12, (MOST - LABEL) // len(step.lanes))


def _centre(lane: int, step: Explained) -> int:
    return LABEL + lane * _lane_width(step) + _lane_width(step) // 2


def _row(label: str, step: Explained, cells: Sequence[str]) -> str:
    """Return a line: what it is about, and a cell for each rank around the middle of its lane."""
    line = list(label.ljust(MOST))
    for lane, cell in enumerate(cells):
        start = _centre(lane, step) - len(cell) // 2
        line[start : start + len(cell)] = cell
    return "".join(line).rstrip()
