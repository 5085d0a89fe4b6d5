"""The page of `paralab report`, made from rows: its sections in order, and the files that it carries."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paralab.benchmarks.report import layers, machines, sections, stats, tables
from paralab.benchmarks.report.lead import lead
from paralab.benchmarks.report.scaling import scaling
from paralab.benchmarks.report.sections import Piece
from paralab.benchmarks.report.sources import Source, load
from paralab.console.phases import Phases, hidden
from paralab.errors import UsageError
from paralab.pages import page
from paralab.pages.page import Download
from paralab.pages.table import Table

HERE = Path(__file__).parent


def render(paths: Sequence[Path], *, title: str = "Results", caught: Sequence[warnings.WarningMessage] = ()) -> str:
    """Return the page for some CSV files. Logs of the ranks are read from the folders beside them.

    `caught` collects warnings while the files are read; they become caveats of the page.
    Raises: UsageError or DataError when a file cannot be read, or holds no run.
    """
    return composed(paths, title=title, prices={}, caught=caught, phases=hidden())[0]


def composed(
    paths: Sequence[Path],
    *,
    title: str,
    prices: Mapping[str, float],
    caught: Sequence[warnings.WarningMessage],
    phases: Phases,
) -> tuple[str, list[Table]]:
    """Return the page as `render` does, and its tables of the same work on different machines.

    prices: dollars an hour of a node without GPUs (cpu) and of a GPU (gpu). phases: shows how far it is.
    Raises: UsageError or DataError when a file cannot be read, or holds no run.
    """
    phases.begin("reading rows")
    sources = load(paths)
    if not any(source.records for source in sources):
        files = ", ".join(map(str, paths))
        raise UsageError(f"{files}: no runs to report, give a CSV file with at least one that is no dry run")
    pieces = sections.pieces(sources, phases)
    phases.begin("writing the page")
    several = [piece for piece in pieces if len(piece.ways) > 1]
    lone = [piece for piece in pieces if len(piece.ways) == 1] if len(pieces) > 1 else []
    found: dict[str, Any] = {
        "lead": lead(pieces),
        "shown": several if lone else pieces,
        "lone": lone,
        "alone": [tables.of_alone(them, kind=kind) for kind, them in tables.by_hardware(lone).items()],
        "machines": machines.of_machines(pieces, prices),
        "scaling": scaling(sources),
        "layers": layers.of_pieces(pieces),
        "slowest": tables.of_slowest(pieces),
        "failures": tables.of_failures(pieces),
        "every_run": [tables.of_runs(them, kind=kind) for kind, them in tables.by_hardware(pieces).items()],
        "environment": tables.of_environment(sources),
        "commands": sections.commands(pieces),
    }
    text = page.render(
        HERE / "report.html",
        title=title,
        pieces=pieces,
        caveats=[*sections.caveats(sources, pieces), *dict.fromkeys(str(warning.message) for warning in caught)],
        contents=_contents(found, pieces),
        of_ways=tables.of_ways,
        notes_of=sections.notes,
        differing=sum(len(values) > 1 for _, values in sections.environment(sources)),
        downloads=[_download(source) for source in sources],
        runs=sum(len(source.records) for source in sources),
        dates=sections.dates(sources),
        fewest=stats.FEWEST_RUNS,
        **found,
    )
    return text, found["machines"]


def _contents(found: dict[str, Any], pieces: Sequence[Piece]) -> list[tuple[str, str, int]]:
    """Return the anchor, the name and the length of each section after the verdict; 0 where a length says nothing."""
    every = [
        ("work", "Work", len(found["shown"])),
        ("alone", "Done in one way", len(found["lone"])),
        ("machines", "Machines", len(found["machines"])),
        ("scaling", "Scaling", len(found["scaling"])),
        ("layers", "Layers", len(found["layers"])),
        ("slowest", "Slowest ranks", len(found["slowest"].rows)),
        ("failures", "Failures", len(found["failures"].rows)),
        ("runs", "Every run", sum(len(way.variant.runs) for piece in pieces for way in piece.ways)),
    ]
    there = [("environment", "Environment", 0)]
    there += [("again", "Run it again", 0)] if found["commands"] else []
    return [*(one for one in every if one[2]), *there, ("reading", "How to read it", 0)]


def _download(source: Source) -> Download:
    content = source.path.read_bytes()
    name = f"{source.label.replace('/', '-')}{source.path.suffix}"
    return page.download(name, content, kind="text/csv")
