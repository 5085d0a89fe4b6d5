"""Which units repeat an earlier one: exactly, or nearly, by their MinHashes and locality-sensitive hashing.

MinHashes are cut into bands. Units of which no band is the same are never compared (Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, section 3.4). Memory holds a few numbers a unit, and more only of those that share a band.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_MISSES = 0.9  # how a pair that is never compared counts, against 0.1 for one compared in vain, which only takes time


@dataclass(frozen=True)
class Duplicate:
    """A unit that is dropped, and the earlier one that is kept in its place, by their places in the order of the text.

    similarity: share of equal numbers in their MinHashes; None where the two are equal to the letter.
    """

    unit: int
    of: int
    similarity: float | None


def exact(signatures: np.ndarray) -> Iterator[Duplicate]:
    """Yield the units whose text is that of an earlier one. signatures: (units,) of `Near.record`."""
    digests = np.ascontiguousarray(signatures["digest"]).view([("high", "<u8"), ("low", "<u8")])
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    of = first[group]
    for unit in np.flatnonzero(of != np.arange(len(of))):
        yield Duplicate(int(unit), int(of[unit]), None)


def near(signatures: np.ndarray, *, threshold: float, besides: np.ndarray) -> Iterator[Duplicate]:
    """Yield the units that are as similar to an earlier one, which is kept, as the threshold says, or more.

    Each is compared with those that are kept before it and share a band with it. So what is dropped has something like
    it that stays, and the order of the text decides which.
    signatures: (units,) of `Near.record`. besides: (units,) bool, units that are left out.
    """
    minhashes = signatures["minhash"]
    kept: dict[tuple[int, int], list[int]] = defaultdict(list)  # band and group -> units
    for unit, groups in sorted(_sharing(minhashes, threshold, besides).items()):
        others = sorted({other for group in groups for other in kept[group]})
        similar = [float((minhashes[unit] == minhashes[other]).mean()) for other in others]
        if similar and max(similar) >= threshold:
            yield Duplicate(unit, others[similar.index(max(similar))], max(similar))
            continue
        for group in groups:
            kept[group].append(unit)


def _sharing(minhashes: np.ndarray, threshold: float, besides: np.ndarray) -> dict[int, list[tuple[int, int]]]:
    """Return band and group of each band that a unit shares with others, of the units that share one."""
    bands, rows = _bands(minhashes.shape[1], threshold)
    units = np.flatnonzero(~besides)
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for band in range(bands):
        keys = _keys(minhashes[:, band * rows : (band + 1) * rows])[units]
        _, group, count = np.unique(keys, return_inverse=True, return_counts=True)
        for i in np.flatnonzero(count[group] > 1):
            found[int(units[i])].append((band, int(group[i])))
    return found


def _bands(permutations: int, threshold: float) -> tuple[int, int]:
    """Return into how many bands MinHashes are cut, and of how many numbers each is: two at least."""
    from datasketch import MinHashLSH

    try:
        chosen = MinHashLSH(threshold, permutations, weights=(1 - _MISSES, _MISSES))
    except ValueError:  # near a threshold of 1 a single band is best, which it refuses
        return 2, permutations // 2
    return chosen.b, chosen.r


def _keys(band: np.ndarray) -> np.ndarray:
    """Return one number (units,) uint64 for the rows of a band (units, rows) uint32: equal for equal ones."""
    factors = np.random.default_rng(0).integers(1, 2**63, (band.shape[1],), dtype=np.uint64)
    keys = np.zeros(len(band), np.uint64)
    for i in range(band.shape[1]):
        keys += (band[:, i].astype(np.uint64) + np.uint64(1)) * (factors[i] | np.uint64(1))
        keys ^= keys >> np.uint64(29)
    return keys
