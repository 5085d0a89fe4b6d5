"""What is kept of each unit of a text: sizes, a checksum, and a MinHash of its shingles. Of equal size for all units.

A shingle is N words in a row, or N characters. The share of shingles that two texts have in common, of all that one of
them has, is their Jaccard similarity (Broder 1997); the share of equal numbers in two MinHashes estimates it.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from paralab.curation.units import Unit
from paralab.data.splitting import cut
from paralab.errors import UsageError

if TYPE_CHECKING:
    from datasketch import MinHash

_WORD = re.compile(r"\w+")
# controls, what stood for bytes that were no UTF-8, and byte order marks of files that were put together
_ODD = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd\ufeff]")


@dataclass(frozen=True)
class Near:
    """How texts are compared. shingle: words in each, or characters. permutations: numbers of a MinHash, 0 for none."""

    shingle: int = 5
    characters: bool = False
    permutations: int = 128

    def check(self) -> None:
        """Raise UsageError where the package for it is missing."""
        if self.permutations and find_spec("datasketch") is None:
            raise UsageError(
                "near duplicates are found by the package datasketch, which is not installed: type `pip install "
                "datasketch`, or add --exact to find exact duplicates alone"
            )

    @property
    def record(self) -> np.dtype:
        """What is kept of one unit: digest is of its text in UTF-8, minhash (permutations,) uint32."""
        counts = [("file", "<u4"), *((name, "<u8") for name in ("number", "n_bytes", "n_chars", "n_words", "n_odd"))]
        return np.dtype([*counts, ("digest", "V16"), ("minhash", "<u4", (self.permutations,))])


EXACT = Near(permutations=0)


def signatures(units: Sequence[Unit], near: Near) -> np.ndarray:
    """Return what is kept of each unit, (units,) of `near.record`. Raises: DataError for what cannot be read."""
    found = np.zeros(len(units), near.record)
    for row, unit in zip(found, units, strict=True):
        _fill(row, unit, near)
    return found


def _fill(row: Any, unit: Unit, near: Near) -> None:
    digest = hashlib.blake2b(digest_size=16)
    row["file"], row["number"] = unit.file, unit.number
    for block in cut(unit.blocks()):
        content = block.encode()
        digest.update(content)
        row["n_bytes"] += len(content)
        row["n_chars"] += len(block)
        row["n_odd"] += len(_ODD.findall(block))
        row["n_words"] += len(_WORD.findall(block))
    row["digest"] = digest.digest()
    if near.permutations:
        row["minhash"] = minhash(unit.blocks(), near)


def minhash(blocks: Iterable[str], near: Near) -> np.ndarray:
    """Return the MinHash of the shingles of a text, (permutations,) uint32."""
    found = _empty(near.permutations).copy()
    for some in shingles(blocks, near):
        found.update_batch([shingle.encode() for shingle in some])
    return found.hashvalues


@cache
def _empty(permutations: int) -> "MinHash":
    from datasketch import MinHash

    return MinHash(permutations)  # which takes milliseconds, and a copy of it microseconds


def shingles(blocks: Iterable[str], near: Near) -> Iterator[list[str]]:
    """Yield all shingles of a text, those of a part of it at a time; of a text shorter than one, all of it.

    Letters count alike in upper and lower case. Between words, marks and blanks do not count.
    """
    n, joint = near.shingle, "" if near.characters else " "
    carried: list[str] = []
    found = False
    for piece in cut(blocks):
        parts = carried + (list(piece.lower()) if near.characters else _WORD.findall(piece.lower()))
        if some := [joint.join(parts[i : i + n]) for i in range(len(parts) - n + 1)]:
            yield some
            found = True
        carried = parts[len(parts) - min(n - 1, len(parts)) :]
    if not found:
        yield [joint.join(carried)]
