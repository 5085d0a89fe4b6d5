"""Which layouts of a search are shown: of those that are alike, the simplest one.

Hundreds of layouts differ in a word or two and by less than any prediction is worth, so that the ten fastest would be
one layout ten times.
"""

from collections.abc import Mapping, Sequence

import numpy as np

ALIKE = 0.01  # cost by which layouts of one kind differ that stand for one another
DEGREES = ("dp", "tp", "pp", "cp", "ep")
KIND = (*DEGREES, "zero", "shard", "micro_batch_size", "recompute")
_USUAL = ("", "1f1b", "gpipe")
_NOT_TRAINED = "zb-h2"  # torch.distributed.pipelining does not have it


def ranked(
    columns: Mapping[str, np.ndarray], numbers: np.ndarray, cost: np.ndarray, then: np.ndarray, most: int
) -> np.ndarray:
    """Return the numbers of at most so many layouts, cheapest first: one of each choice of degrees before any other.

    The first is the simplest of all that cost about as little as any: no prediction tells these apart.

    columns: of all layouts, each (layouts,). numbers: of those that are looked at. cost, then: (layouts,), small is
    good; `then` decides between equals.
    """
    if not len(numbers):
        return numbers
    # in a pipeline of PyTorch the stages of ZeRO from the first one on take as long and keep as much
    kinds = {**columns, "zero": np.where(columns["pp"] > 1, np.minimum(columns["zero"], 1), columns["zero"])}
    some = _simplest(kinds, numbers, cost, then, KIND, words=_words(columns, numbers))
    of_degrees = _simplest(columns, some, cost, then, DEGREES, words=_words(columns, some))
    group, first = _groups(columns, some, DEGREES), np.isin(some, of_degrees)
    limit = np.empty(len(of_degrees))  # by group: what its first one costs
    limit[group[first]] = cost[some[first]]
    others = some[(cost[some] >= limit[group]) & ~first]
    others = others[np.lexsort((then[others], cost[others]))]
    first_of_all = _first(columns, of_degrees, cost, least=cost[numbers].min())
    shown = np.concatenate([of_degrees[np.lexsort((cost[of_degrees], of_degrees != first_of_all))], others])[:most]
    return shown[np.lexsort((then[shown], cost[shown], shown != first_of_all))]


def _first(columns: Mapping[str, np.ndarray], numbers: np.ndarray, cost: np.ndarray, *, least: float) -> int:
    """Return of all layouts that cost about as little as any the one with fewest axes and words."""
    close = numbers[cost[numbers] <= max(least * (1 + ALIKE), cost[numbers].min())]
    axes = sum(1.0 * (columns[name][close] > 1) for name in DEGREES) + (columns["pp"][close] > 1)
    return int(close[np.lexsort((cost[close], axes + _words(columns, close)))[0]])


def _simplest(
    columns: Mapping[str, np.ndarray],
    numbers: np.ndarray,
    cost: np.ndarray,
    then: np.ndarray,
    by: Sequence[str],
    *,
    words: np.ndarray,
) -> np.ndarray:
    """Return of all layouts that agree in some columns the simplest of those that cost about as little as any."""
    group = _groups(columns, numbers, by)
    least = np.full(group.max(initial=-1) + 1, np.inf)
    np.minimum.at(least, group, cost[numbers])
    close = cost[numbers] <= least[group] * (1 + ALIKE)
    order = np.lexsort((then[numbers], cost[numbers], words, ~close, group))
    first = np.flatnonzero(np.diff(group[order], prepend=-1))
    return numbers[order[first]]


def _groups(columns: Mapping[str, np.ndarray], numbers: np.ndarray, by: Sequence[str]) -> np.ndarray:
    """Return the number of the group of each layout, from 0 (numbers,): layouts that agree in all columns of `by`."""
    found = np.zeros(len(numbers), dtype=np.int64)
    for name in by:
        values, index = np.unique(columns[name][numbers], return_inverse=True)
        found = np.unique(found * len(values) + index, return_inverse=True)[1]
    return found


def _words(columns: Mapping[str, np.ndarray], numbers: np.ndarray) -> np.ndarray:
    """Return how much there is to know of each layout beside its degrees (numbers,): rarer words count as more."""
    c = {name: column[numbers] for name, column in columns.items()}
    uneven = np.array([len(split) > 0 for split in c["layers_per_stage"]], dtype=float)
    rare = 1.0 * ~np.isin(c["schedule"], _USUAL) + 4 * (c["schedule"] == _NOT_TRAINED)
    # the third stage of ZeRO is that of a layout that needs it; in a pipeline both are the first with more words
    zero = np.where(c["pp"] > 1, 1.0, 0.5) * np.maximum(c["zero"] - 1, 0)
    return 2 * uneven + np.log2(c["vpp"]) + rare + zero + (c["shard"] > 0)
