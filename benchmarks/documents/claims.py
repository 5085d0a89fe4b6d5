"""The page docs/claims.md: what is often taught about speed and memory beside what was measured, from stored rows."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from textwrap import fill

from paralab.benchmarks.claims.claims import CLAIMS, Claim
from paralab.benchmarks.claims.findings import Finding, Measured
from paralab.benchmarks.claims.measuring import FOLDER
from paralab.benchmarks.visits import load_file, loads
from paralab.records.reading import read
from paralab.records.row import RunRecord

DEVICES = {"cpu": "CPU", "cuda": "GPU"}
_WIDTH = 120
_UNMEASURED = "not measured"

HEAD = """\
# Claims, and what was measured

Made by `python -m paralab.benchmarks.documents claims` from the rows in `benchmarks/results/claims`. A test fails when
it is stale.

    python -m paralab.benchmarks.claims

measures all of it again on the machine at hand, and puts its rows in the place of those of the same kind of device: a
machine with a GPU adds its own. The models are tiny, so that it takes minutes: a figure says what is so for them on
that machine, and a verdict no more than that. Each claim has a rule by which its figures are judged, which is part of
the code: new rows change a verdict, not the rule.

"Course notes" are notes of a course on distributed training, from which paralab grew. As far as we know they are not
published, so that there is no page to link to: where something published says the same, or nearly so, it is named
beside them. A claim with no other source cannot be looked up.
"""

HOW = """\
Times are ratios of step times (or of samples a second) of runs whose repeats were interleaved, compared in pairs as
[`paralab compare`](compare.md) does it, each with its 95% interval. Bytes are counted, the same in every run, and have
no interval. "Not enough evidence" is said where an interval lies on both sides of a limit.
"""


def page() -> str:
    """Return the page."""
    measured = rows_by_device(FOLDER)
    findings = {
        device: {claim.title: found for claim in CLAIMS if (found := find(claim, rows)) is not None}
        for device, rows in measured.items()
    }
    parts = [HEAD, *_machines(measured, FOLDER), "", HOW, *_summary(findings)]
    for claim in CLAIMS:
        parts += ["", *_section(claim, {device: found.get(claim.title) for device, found in findings.items()})]
    return "\n".join(parts) + "\n"


def rows_by_device(folder: Path) -> dict[str, dict[str, list[RunRecord]]]:
    """Return the rows of each kind of device by series; those of a series that was not measured are not there."""
    found: dict[str, dict[str, list[RunRecord]]] = {device: {} for device in DEVICES}
    for path in sorted(folder.glob("*.csv")):
        if path.name.endswith(".load.csv"):
            continue
        for row in read(path):
            found.setdefault(row.device or "cpu", {}).setdefault(path.stem, []).append(row)
    return found


def find(claim: Claim, measured: Measured) -> Finding | None:
    """Return what rows of one kind of device say of a claim; None where they lack a series of it."""
    return claim.judge(measured) if all(measured.get(series) for series in claim.series) else None


def _machines(measured: Mapping[str, Measured], folder: Path) -> Iterator[str]:
    for device, by_series in measured.items():
        rows = [row for mine in by_series.values() for row in mine]
        if not rows:
            yield f"**{DEVICES[device]}**: {_UNMEASURED}: no machine with one has run the command."
            continue
        first = rows[0]
        what = f"{first.gpu_name}" if device == "cuda" else f"{first.cpu_model}, {first.cores_allowed:g} cores"
        days = sorted({row.started_at[:10] for row in rows})
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        yield fill(
            f"**{DEVICES[device]}**: {what}, torch {first.torch_version}, {len(rows)} runs of {when}."
            f"{_beside(by_series, folder)}",
            _WIDTH,
            break_long_words=False,
        )


def _beside(by_series: Measured, folder: Path) -> str:
    """Say what other programs did beside the runs, where that was seen."""
    ids = {row.run_id for rows in by_series.values() for row in rows}
    files = [folder / f"{series}.csv" for series in by_series]
    cores = [n for file in files if load_file(file).exists() for run, n in loads(file).items() if run in ids]
    if not cores:
        return ""
    return (
        f" Beside a run, other programs of the machine took {median(cores):.1f} cores (median), "
        f"{min(cores):.1f} to {max(cores):.1f}."
    )


def _summary(findings: Mapping[str, Mapping[str, Finding]]) -> Iterator[str]:
    yield f"| claim | {' | '.join(DEVICES.values())} | figure on a CPU |"
    yield f"|---|{'---|' * len(DEVICES)}---|"
    for claim in CLAIMS:
        verdicts = [_verdict(claim, device, findings[device].get(claim.title)) for device in DEVICES]
        found = findings["cpu"].get(claim.title)
        yield f"| [{claim.title}](#{_anchor(claim.title)}) | {' | '.join(verdicts)} | {found.figure if found else ''} |"


def _anchor(title: str) -> str:
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


def _verdict(claim: Claim, device: str, found: Finding | None) -> str:
    if found is not None:
        return found.verdict
    return "cannot be tested here" if device == "cpu" and claim.gpu_only else _UNMEASURED


def _section(claim: Claim, found: Mapping[str, Finding | None]) -> Iterator[str]:
    yield f"## {claim.title}"
    yield ""
    yield _paragraph(f"> {claim.words}", indent="> ")
    yield ""
    yield _paragraph(f"Source: {'; '.join(claim.sources)}. {claim.rule}")
    yield ""
    yield f"    {claim.command}"
    for device, finding in found.items():
        yield ""
        if finding is not None:
            yield _paragraph(f"**{DEVICES[device]}: {finding.verdict}.** {_sentence(finding.figure)} {finding.why}")
            if finding.table:
                yield from ("", *finding.table)
        elif device == "cpu" and claim.gpu_only:
            yield f"**{DEVICES[device]}: cannot be tested here**, where {claim.gpu_only}."
        else:
            yield f"**{DEVICES[device]}: {_UNMEASURED}.**"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _paragraph(text: str, indent: str = "") -> str:
    words: Sequence[str] = text.split()
    return fill(" ".join(words), _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
