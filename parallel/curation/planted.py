"""How well near duplicates are found: changed copies are planted among units, and compared by their exact Jaccard."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from paralab.curation.duplicates import near as near_duplicates
from paralab.curation.signatures import Near, shingles, signatures
from paralab.curation.units import Unit

_LEAST_WORDS = 20  # of a unit that is copied: of shorter ones a change leaves little


@dataclass(frozen=True)
class Copy:
    """A planted copy. jaccard: the exact one, with the unit that it is most like. found: whether it was called one."""

    jaccard: float
    found: bool


def plant(units: Iterable[Unit], near: Near, *, threshold: float, most: int, seed: int = 0) -> list[Copy]:
    """Return what becomes of changed copies of `most` units at most, each with 0% to 8% of its words replaced.

    The units themselves are taken only where they are not like one before them, and have twenty words or more.
    """
    texts = list(islice(_apart((_text(unit) for unit in units), near, threshold), most))
    rng = random.Random(seed)
    copies = [_changed(text, rng.uniform(0, 0.08), rng) for text in texts]
    found = _found(texts + copies, near, threshold)
    sets = [_shingles(text, near) for text in texts]
    exact = (max(jaccard(copied, other) for other in sets) for copied in (_shingles(copy, near) for copy in copies))
    return [Copy(similarity, len(texts) + i in found) for i, similarity in enumerate(exact)]


def jaccard(one: set[str], other: set[str]) -> float:
    """Return the share of elements that two sets have in common, of all that one of them has."""
    return len(one & other) / len(one | other)


def _text(unit: Unit) -> str:
    return "".join(unit.blocks())


def _shingles(text: str, near: Near) -> set[str]:
    return {shingle for some in shingles([text], near) for shingle in some}


def _apart(texts: Iterable[str], near: Near, threshold: float) -> Iterator[str]:
    before: list[set[str]] = []
    for text in texts:
        found = _shingles(text, near)
        if len(text.split()) >= _LEAST_WORDS and all(jaccard(found, other) < threshold for other in before):
            before.append(found)
            yield text


def _changed(text: str, rate: float, rng: random.Random) -> str:
    return " ".join(f"x{rng.random()}" if rng.random() < rate else word for word in text.split())


def _found(texts: list[str], near: Near, threshold: float) -> set[int]:
    made = signatures([Unit(0, i, text) for i, text in enumerate(texts)], near)
    besides = np.zeros(len(texts), bool)
    return {duplicate.unit for duplicate in near_duplicates(made, threshold=threshold, besides=besides)}
