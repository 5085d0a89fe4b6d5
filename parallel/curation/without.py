"""Write a text without the units that repeat others."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from paralab.console.outputs import write_whole, written_whole
from paralab.console.phases import Phases
from paralab.curation.duplicates import Duplicate, exact, near
from paralab.curation.progress import Percent
from paralab.curation.signatures import Near
from paralab.curation.units import Texts, Unit
from paralab.data.files import unchanged


def dropped(signatures: np.ndarray, like: Near, *, threshold: float) -> list[Duplicate]:
    """Return the units that repeat an earlier one, in their order: exactly, or where `like` has MinHashes nearly.

    Texts without a word have no shingles of words that could differ: they are only compared exactly.
    signatures: (units,) of `like.record`.
    """
    found = list(exact(signatures))
    if like.permutations:
        besides = np.zeros(len(signatures), bool) if like.characters else signatures["n_words"] == 0
        besides[[duplicate.unit for duplicate in found]] = True
        found += near(signatures, threshold=threshold, besides=besides)
    return sorted(found, key=lambda duplicate: duplicate.unit)


def write(path: Path, texts: Texts, signatures: np.ndarray, again: Sequence[Duplicate], *, phases: Phases) -> int:
    """Write what is kept to a file that appears when it is whole; return the bytes of its texts.

    The texts are read once more, a unit at a time. Raises: DataError when they cannot be, UsageError when the file
    cannot be written.
    """
    keep = np.ones(len(signatures), bool)
    keep[[duplicate.unit for duplicate in again]] = False
    percent = Percent(phases, f"writing {path}", total=int(signatures["n_chars"].sum()))
    with (
        written_whole(path) as raw,
        io.TextIOWrapper(raw, encoding="utf-8", newline="\n") as file,
        unchanged(texts.states),
    ):
        for kept, unit, n_chars in zip(keep, texts.units(), signatures["n_chars"], strict=True):
            if kept:
                _as_row(file, unit) if path.suffix == ".jsonl" else _as_text(file, unit, texts)
            percent.add(int(n_chars))
    return int(signatures["n_bytes"][keep].sum())


def _as_row(file: TextIO, unit: Unit) -> None:
    file.write('{"text": "')
    for block in unit.blocks():
        file.write(json.dumps(block, ensure_ascii=False)[1:-1])
    file.write('"}\n')


def _as_text(file: TextIO, unit: Unit, texts: Texts) -> None:
    file.writelines(unit.blocks())
    file.write("\n" if texts.by == "line" else "\n\n")


def write_pairs(path: Path, texts: Texts, signatures: np.ndarray, again: Sequence[Duplicate]) -> None:
    """Write a CSV file with a line for each unit that is dropped: which it is, and which one is kept in its place.

    Raises: UsageError when it cannot be written.
    """
    content = io.StringIO()
    rows = csv.writer(content, lineterminator="\n")
    rows.writerow(["file", texts.by, "of_file", f"of_{texts.by}", "similarity"])
    rows.writerows(_pairs(texts, signatures, again))
    write_whole(path, content.getvalue().encode())


def _pairs(texts: Texts, signatures: np.ndarray, again: Sequence[Duplicate]) -> Iterator[list[object]]:
    for duplicate in again:
        places = (signatures[duplicate.unit], signatures[duplicate.of])
        named = [x for place in places for x in (texts.files[place["file"]], int(place["number"]))]
        yield [*named, "exact" if duplicate.similarity is None else f"{duplicate.similarity:.3f}"]
