"""Result files as the user gives them: each with a distinct label, and each run counted once."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paralab.console.outputs import real
from paralab.errors import DRY, DataError
from paralab.records.reading import read_lines
from paralab.records.row import RunRecord


@dataclass(frozen=True)
class Source:
    """A result file and its runs, without those that a file before it holds too."""

    path: Path
    label: str
    records: tuple[RunRecord, ...]


def load(paths: Sequence[Path]) -> list[Source]:
    """Read result files. A file that is given twice is read once, and a run that stands twice counts once: both are
    said in a warning. Dry runs, which measured nothing, are left out, and that is said as well.

    Raises: UsageError or DataError when a file cannot be read, or two different runs have one id.
    """
    given = [real(path) for path in paths]
    distinct = [path for number, path in enumerate(paths) if given[number] not in given[:number]]
    if twice := [str(path) for path in distinct if given.count(real(path)) > 1]:
        warnings.warn(f"{', '.join(twice)}: given more than once, read once", stacklevel=2)
    places: dict[str, tuple[str, RunRecord]] = {}
    repeated: dict[str, int] = {}
    found = []
    for path, label in zip(distinct, file_labels(distinct), strict=True):
        new, lines = [], read_lines(path)
        if dry := sum(record.status == DRY for _, record in lines):
            warnings.warn(
                f"{path}: left out {dry} dry run{'s' * (dry > 1)}, in which nothing was measured", stacklevel=2
            )
        for number, record in lines:
            if record.status == DRY:
                continue
            place = f"{path} line {number}"
            first_place, first = places.setdefault(record.run_id, (place, record))
            if first is record:
                new.append(record)
            elif _contents(first) == _contents(record):
                repeated[str(path)] = repeated.get(str(path), 0) + 1
            else:
                raise DataError(f"{first_place} and {place} are two different runs with the id {record.run_id}: "
                                "remove the wrong line")  # fmt: skip
        found.append(Source(path, label, tuple(new)))
    if repeated:
        told = ", ".join(f"{count} {'rows' if count > 1 else 'row'} of {path}" for path, count in repeated.items())
        warnings.warn(f"runs that are there twice count once: skipped {told}", stacklevel=2)
    return found


def file_labels(paths: Sequence[Path]) -> list[str]:
    """Return the names of different files without their endings, with as many folders as tell them apart."""
    labels = [path.stem for path in paths]
    for depth in range(2, max((len(real(path).parts) for path in paths), default=0)):
        several = {label for label in labels if labels.count(label) > 1}
        labels = [
            "/".join((*real(path).parts[-depth:-1], path.stem)) if label in several else label
            for path, label in zip(paths, labels, strict=True)
        ]
    return [str(path) if labels.count(label) > 1 else label for path, label in zip(paths, labels, strict=True)]


def _contents(record: RunRecord) -> str:
    """Return all cells as text: equal for equal rows, also where a number is not finite."""
    return repr(replace(record, schema=0))
