"""What `paralab optimise` prints, and the file that it writes."""

import csv
import io
from collections.abc import Iterator

from paralab.commands.optimise import Asked
from paralab.commands.optimise_run import PARITY_ITERATES, Found
from paralab.console.quantities import size_text, time_text
from paralab.convex.measured import Line, epochs_until, measured_rate, rate_in_theory
from paralab.convex.methods import METHODS

SMALL_GRADIENT = 1e-8
TOLERANCE = 1e-10  # of parity in fp64, as in paralab.parity
_RATES = {"linear": "linear, factor an epoch", "quadratic": "quadratic, order"}
COLUMNS = (
    "problem",
    "processes",
    "method",
    "epochs",
    "steps",
    "objective",
    "suboptimality",
    "gradient_norm",
    "bound",
    "time_s",
    "sent_bytes",
    "note",
)


def passed(found: Found) -> bool:
    return all(difference <= TOLERANCE for difference in found.parity.values())


def table(asked: Asked, found: Found) -> Iterator[str]:
    """Yield the lines to print, 80 columns wide."""
    processes = f"{asked.nproc} process{'es' if asked.nproc > 1 else ''}"
    yield from (*found.facts, processes, "")
    yield f"{'':11} {'':>6} {'':>9} {'gradient':>9} {'epochs':>7} {'':>8} {'':>9} {'from 1':>8}"
    yield (
        f"{'method':11} {'epochs':>6} {'suboptim.':>9} {'norm':>9} {'to 1e-8':>7} {'time':>8} {'sent':>9} "
        f"{'process':>8}"
    )
    for name, lines in found.lines.items():
        yield _row(name, lines, found)
    yield ""
    yield f"{'method':11} {'rate':26} {'theory':>9} {'measured':>9}"
    for name, lines in found.lines.items():
        yield _rate(name, lines, found.minima[name])
    for name, lines in found.lines.items():
        yield from _notes(name, lines)
    if found.parity:
        verdict = "passed" if passed(found) else "FAILED"
        yield f"parity of {PARITY_ITERATES} iterates with one process, at most {TOLERANCE:.0e}: {verdict}"


def _row(name: str, lines: list[Line], found: Found) -> str:
    last, until = lines[-1], epochs_until(lines, SMALL_GRADIENT)
    from_one = f"{found.parity[name]:.1e}" if name in found.parity else ""
    small = "" if until is None else f"{until:.4g}"
    return (
        f"{name:11} {last.epochs:>6.4g} {max(last.suboptimality, 0):>9.1e} {last.gradient_norm:>9.1e} "
        f"{small:>7} {time_text(last.time_s):>8} {size_text(last.sent_bytes):>9} {from_one:>8}"
    ).rstrip()


def _rate(name: str, lines: list[Line], minimum: float) -> str:
    method = METHODS[name]
    words = _RATES.get(method.rate, f"{method.rate}, exponent")
    cells = (rate_in_theory(method, lines, minimum=minimum), measured_rate(method, lines, minimum=minimum))
    return " ".join([f"{name:11} {words:26}", *(f"{'' if x is None else f'{x:.4g}':>9}" for x in cells)]).rstrip()


def _notes(name: str, lines: list[Line]) -> Iterator[str]:
    """Yield what a user should know of steps: once what is said of several."""
    noted = [line for line in lines if line.note]
    if noted:
        yield f"{name}: step {noted[0].steps}: {noted[0].note}" + (f"; so {len(noted)} steps" if len(noted) > 1 else "")


def csv_of(asked: Asked, found: Found) -> bytes:
    """Return a CSV file with a line for each method and iterate; no bound is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for lines in found.lines.values():
        for line in lines:
            writer.writerow({"problem": asked.problem, "processes": asked.nproc, **vars(line)})
    return text.getvalue().encode()
