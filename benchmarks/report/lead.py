"""What a report says first: one verdict over all of its work, and the picture that shows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from paralab.benchmarks.report.comparison import Comparison
from paralab.benchmarks.report.sections import Piece
from paralab.pages.page import Chart

_UNDECIDED = ("insufficient", "not interleaved", "not enough evidence")


@dataclass(frozen=True)
class Lead:
    """Sentences, the first of which is the verdict, what else was found, and a chart where there is one."""

    sentences: Sequence[str]
    chart: Chart | None
    further: Sequence[str] = ()


def lead(pieces: Sequence[Piece]) -> Lead:
    """Return what to say first. Several pieces of work are counted by what was found in each, never ranked."""
    compared = [piece for piece in pieces if len(piece.ways) > 1]
    if len(compared) != 1 and len(pieces) > 1:
        return _of_several(pieces, compared)
    piece = compared[0] if compared else pieces[0]
    return Lead(piece.verdict, _picture(piece))


def _of_several(pieces: Sequence[Piece], compared: Sequence[Piece]) -> Lead:
    failed = [sentence for piece in pieces for sentence in piece.parity_failures]
    if not compared:
        nothing = f"Each of {len(pieces)} pieces of work was done in one way only: there is nothing to compare."
        return Lead([*failed, nothing], None)
    left, shown, said = list(compared), compared[0], list[str]()
    for is_such, sentence in _KINDS:
        if mine := [piece for piece in left if is_such(piece)]:
            left = [piece for piece in left if piece not in mine]
            most = max(mine, key=_largest)
            shown = shown if said else most
            of_all = "" if said else f" of {len(compared)} pieces of work"
            said.append(f"In {len(mine)}{of_all} {sentence.format(most=_most(most))}.")
    if alone := len(pieces) - len(compared):
        said.append(f"{alone} more {'was' if alone == 1 else 'were'} done in one way only, and compared with nothing.")
    return Lead([*failed, said[0]], _picture(shown), said[1:])


def _comparisons(piece: Piece) -> list[Comparison]:
    return [way.against_base for way in piece.ways if way.against_base]


def _has(*verdicts: str) -> Callable[[Piece], bool]:
    return lambda piece: any(comparison.verdict in verdicts for comparison in _comparisons(piece))


def _largest(piece: Piece) -> float:
    """Return the largest change that has evidence, in percent."""
    return max((abs(c.change_percent or 0.0) for c in _different(piece)), default=0.0)


def _different(piece: Piece) -> list[Comparison]:
    found = [c for c in _comparisons(piece) if c.verdict in ("better", "worse")]
    return [c for c in found if c.verdict == "better"] or found


def _most(piece: Piece) -> str:
    found = max(_different(piece), key=lambda c: abs(c.change_percent or 0.0), default=None)
    if found is None:
        return ""
    word = "faster" if found.verdict == "better" else "slower"
    return f"{found.other} is {abs(found.change_percent or 0.0):.1f}% {word} than {found.base} ({piece.name})"


# a piece of work counts for the first of these that is true of it
_KINDS: tuple[tuple[Callable[[Piece], bool], str], ...] = (
    (_has("better"), "something is faster than its baseline, most of all: {most}"),
    (_has("worse"), "nothing is faster than its baseline and something is slower, most of all: {most}"),
    (_has("~", "equivalent"), "there is no evidence of a difference"),
    (_has(*_UNDECIDED), "there is too little evidence for a verdict"),
    (_has("not reached"), "a run did not reach the loss that it was to reach"),
    (lambda piece: True, "runs failed, or parity did"),
)


def _picture(piece: Piece) -> Chart | None:
    """Return the step times of a piece of work, its first chart where no run has one."""
    chart = next(iter(piece.charts), None)
    return None if chart is None else replace(chart, title=f"{chart.title}: {piece.name}")
