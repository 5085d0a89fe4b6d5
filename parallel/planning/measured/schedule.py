"""How long the passes of a pipeline take when its ranks wait for each other, and share cores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paralab.layout.schedules import Pass


@dataclass(frozen=True)
class Took:
    """Seconds of one pass: computing, which other processes slow down where cores are shared, and waiting for links."""

    compute_s: float
    links_s: float


def makespan_s(
    order: Sequence[Sequence[Pass]],
    took: Callable[[Pass], Took],
    message_s: Callable[[Pass], float],
    *,
    rank_of: Callable[[int], int],
    stages: int,
    speed: Callable[[int], float],
) -> float:
    """Return the seconds until all pipeline ranks have done their passes, in their order.

    took: of a pass alone. message_s: until the result of a pass is at the rank that needs it. speed: the share of a
    process's own speed that is left while so many pipeline ranks compute.
    """
    place = [0] * len(order)
    left: list[float | None] = [None] * len(order)  # compute seconds of the pass at work
    ends: list[float] = [0.0] * len(order)  # when a rank is free
    done: dict[tuple[str, int, int], float] = {}
    now = 0.0
    while any(place[r] < len(order[r]) for r in range(len(order))):
        starts = []
        for r, passes in enumerate(order):
            if left[r] is not None or place[r] >= len(passes):
                continue
            ready = _ready(passes[place[r]], done, stages, rank_of, message_s)
            if ready is None:
                continue
            if max(ready, ends[r]) <= now + 1e-12:
                left[r] = took(passes[place[r]]).compute_s
            else:
                starts.append(max(ready, ends[r]))
        busy = [r for r in range(len(order)) if left[r] is not None]
        rate = speed(len(busy)) if busy else 1.0
        until = [now + left[r] / rate for r in busy] + starts  # type: ignore[operator]
        if not until:
            raise AssertionError("the passes of a schedule wait for each other")
        next_s = min(until)
        for r in busy:
            left[r] -= (next_s - now) * rate  # type: ignore[operator]
            if left[r] <= 1e-12:  # type: ignore[operator]
                one = order[r][place[r]]
                ends[r] = next_s + took(one).links_s
                done[(one.kind, one.stage, one.micro_batch)] = ends[r]
                left[r], place[r] = None, place[r] + 1
        now = next_s
    return max(ends)


def _ready(
    one: Pass,
    done: dict[tuple[str, int, int], float],
    stages: int,
    rank_of: Callable[[int], int],
    message_s: Callable[[Pass], float],
) -> float | None:
    """Return when a pass has what it needs from other stages; None where that is not there yet."""
    if one.kind == "W" or (one.kind == "F" and one.stage == 0) or (one.kind in "BI" and one.stage == stages - 1):
        return 0.0
    other = one.stage + (-1 if one.kind == "F" else 1)
    kinds = ("F",) if one.kind == "F" else ("B", "I")
    at = next((t for kind in kinds if (t := done.get((kind, other, one.micro_batch))) is not None), None)
    if at is None:
        return None
    return at + (message_s(Pass(one.kind, other, one.micro_batch)) if rank_of(other) != rank_of(one.stage) else 0.0)
