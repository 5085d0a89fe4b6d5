"""Closed forms of what a collective sends, in bytes per rank.

*Payload* is the whole logical buffer of a collective (all ranks' parts together where it is split). Two numbers say
what one rank sends for it, both as a mean over the ranks of the group:

- *Ring bytes* are those of the ring algorithms of Thakur, Rabenseifner and Gropp 2005, "Optimization of Collective
  Communication Operations in MPICH", sections 4.1 to 4.5: the least a strategy can do, on any backend.
- *Wire bytes* are what leaves a rank's network interface with the backend that runs, packet headers apart.

Values are `Fraction`, so that a counted step and its prediction can be compared with `==`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from math import prod


def ring_share(op: str, ranks: int) -> Fraction:
    """Return ring bytes over payload bytes of one operation in a group.

    Raises: KeyError for an operation that is not in the table, ValueError if ranks < 1.
    """
    if ranks < 1:
        raise ValueError(f"a group of {ranks} ranks: at least 1 is needed")
    part = Fraction(ranks - 1, ranks)
    return {
        "all_reduce": 2 * part,  # a reduce-scatter, then an all-gather
        "all_gather": part,
        "reduce_scatter": part,
        "all_to_all": part,  # the diagonal block stays at home
        "broadcast": part,  # a chain: every rank but the last forwards the buffer once
        "reduce": part,
        "gather": part / ranks,  # every rank but the root sends its own part
        "scatter": part / ranks,  # the root sends all parts but its own
        "send": Fraction(1),
        "recv": Fraction(0),
        "barrier": Fraction(0),
    }[op]


def ring_bytes(op: str, payload_bytes: int | Fraction, ranks: int) -> Fraction:
    """Return the bytes that a rank sends for one operation over a payload, by ring algorithms."""
    return ring_share(op, ranks) * payload_bytes


def wire_bytes(op: str, payload_bytes: int | Fraction, ranks: int, *, backend: str) -> Fraction:
    """Return the bytes that leave a rank for one call, with the algorithms of a backend ("gloo", "nccl", ...).

    gloo (torch 2.13) was measured at the interface of 2, 3 and 4 hosts, with payloads of 0.25 to 16 MiB: within 2% of
    this for every operation of the table (a call costs some hundred bytes more, which show below 0.1 MiB). It sends
    what a ring does, but for two operations. Of NCCL no interface was measured: it chooses between rings, trees and
    switches that reduce, so that its numbers are those of the ring.
    """
    form = _GLOO.get(op) if backend == "gloo" else None
    return form(payload_bytes, ranks) if form else ring_bytes(op, payload_bytes, ranks)


def _gloo_reduce_scatter_bytes(payload_bytes: int | Fraction, ranks: int) -> Fraction:
    """Return those of an all-reduce: torch reduces everything everywhere and keeps a part (ProcessGroupGloo.cpp)."""
    return ring_bytes("all_reduce", payload_bytes, ranks)


def _gloo_reduce_bytes(payload_bytes: int | Fraction, ranks: int) -> Fraction:
    """Return those of gloo's reduce to rank 0: a ring that reduces, then every other rank sends its chunk to the root.

    A chunk is cut into segments of at most 1 MiB, and each rank keeps back only the last two of its own, however many
    there are (gloo/reduce.cc): from two segments a chunk on it sends more than a ring has to.
    """
    if ranks == 1 or not payload_bytes:
        return Fraction(0)
    segment = min(-(-payload_bytes // (2 * ranks)), 1 << 20)
    segments_per_chunk = max(-(-payload_bytes // segment // ranks), 2)
    chunk = segments_per_chunk * segment

    def within(start: int | Fraction, size: int | Fraction) -> int | Fraction:
        return max(min(size, payload_bytes - start), 0)

    kept = sum(within((rank + 1) * chunk - 2 * segment, 2 * segment) for rank in range(ranks))
    gathered = payload_bytes - within(0, chunk)
    return Fraction(ranks * payload_bytes - kept + gathered, ranks)


_GLOO: Mapping[str, Callable[[int | Fraction, int], Fraction]] = {
    "reduce_scatter": _gloo_reduce_scatter_bytes,
    "reduce": _gloo_reduce_bytes,
}


def fsdp_padded_numel(shapes: Iterable[Sequence[int]], *, dp: int) -> int:
    """Return the elements that FSDP2 moves for parameters of these shapes: dimension 0 rounded up to dp.

    One of shape () is not sharded, and counts as nothing.
    """
    return sum(-(-shape[0] // dp) * dp * prod(shape[1:]) for shape in shapes if shape)
