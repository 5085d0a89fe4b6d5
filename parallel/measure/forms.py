"""Closed forms of what each strategy sends: bytes per rank and optimizer step.

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

from parallel.layout import Schedule


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


def ring_bytes(op: str, payload_bytes: int, ranks: int) -> Fraction:
    """Return the bytes that a rank sends for one operation over a payload, by ring algorithms."""
    return ring_share(op, ranks) * payload_bytes


def wire_bytes(op: str, payload_bytes: int, ranks: int, *, backend: str) -> Fraction:
    """Return the bytes that leave a rank for one call, with the algorithms of a backend ("gloo", "nccl", ...).

    gloo (torch 2.13) was measured at the interface of 2, 3 and 4 hosts, with payloads of 0.25 to 16 MiB: within 2% of
    this for every operation of the table (a call costs some hundred bytes more, which show below 0.1 MiB). It sends
    what a ring does, but for two operations. Of NCCL no interface was measured: it chooses between rings, trees and
    switches that reduce, so that its numbers are those of the ring.
    """
    form = _GLOO.get(op) if backend == "gloo" else None
    return form(payload_bytes, ranks) if form else ring_bytes(op, payload_bytes, ranks)


def _gloo_reduce_scatter_bytes(payload_bytes: int, ranks: int) -> Fraction:
    """Return those of an all-reduce: torch reduces everything everywhere and keeps a part (ProcessGroupGloo.cpp)."""
    return ring_bytes("all_reduce", payload_bytes, ranks)


def _gloo_reduce_bytes(payload_bytes: int, ranks: int) -> Fraction:
    """Return those of gloo's reduce to rank 0: a ring that reduces, then every other rank sends its chunk to the root.

    A chunk is cut into segments of at most 1 MiB, and each rank keeps back only the last two of its own, however many
    there are (gloo/reduce.cc): from two segments a chunk on it sends more than a ring has to.
    """
    if ranks == 1 or not payload_bytes:
        return Fraction(0)
    segment = min(-(-payload_bytes // (2 * ranks)), 1 << 20)
    segments_per_chunk = max(-(-payload_bytes // segment // ranks), 2)
    chunk = segments_per_chunk * segment

    def within(start: int, size: int) -> int:
        return max(min(size, payload_bytes - start), 0)

    kept = sum(within((rank + 1) * chunk - 2 * segment, 2 * segment) for rank in range(ranks))
    gathered = payload_bytes - within(0, chunk)
    return Fraction(ranks * payload_bytes - kept + gathered, ranks)


_GLOO: Mapping[str, Callable[[int, int], Fraction]] = {
    "reduce_scatter": _gloo_reduce_scatter_bytes,
    "reduce": _gloo_reduce_bytes,
}


# --- strategies, by ring algorithms


def ddp_bytes(gradient_bytes: int, *, dp: int) -> Fraction:
    """Predict replicated data parallelism: one all-reduce of all gradients (Li et al. 2020, PyTorch Distributed).

    `gradient_bytes` counts a shared parameter once. Broadcasts of module buffers come on top.
    """
    return ring_bytes("all_reduce", gradient_bytes, dp)


def zero1_bytes(parameter_bytes: int, *, gradient_bytes: int | None = None, dp: int) -> Fraction:
    """Predict ZeRO-1 as torch's ZeroRedundancyOptimizer does it: DDP, then each owner broadcasts what it updated.

    The three parts of (dp - 1) / dp are one more than in Rajbhandari et al. 2020 (ZeRO, section 7), whose
    gradients are reduced to their owner only.
    """
    gradients = parameter_bytes if gradient_bytes is None else gradient_bytes
    return ddp_bytes(gradients, dp=dp) + ring_bytes("broadcast", parameter_bytes, dp)


def fsdp_padded_numel(shapes: Iterable[Sequence[int]], *, dp: int) -> int:
    """Return the elements that FSDP2 moves for parameters of these shapes: dimension 0 rounded up to dp."""
    return sum(-(-shape[0] // dp) * dp * prod(shape[1:]) for shape in shapes)


def fsdp_bytes(gathered_bytes: int, *, dp: int, gathers: int = 2, reduced_bytes: int | None = None) -> Fraction:
    """Predict sharded parameters: all-gathers in forward and backward, one reduce-scatter (ZeRO, section 7.2.2).

    gathered_bytes: padded parameters in the type they are gathered in (see `fsdp_padded_numel`).
    gathers: 2 when parameters are freed after forward (ZeRO-3), 1 when they are kept until backward.
    reduced_bytes: padded gradients in the type they are reduced in, when it is another one.
    """
    reduced = gathered_bytes if reduced_bytes is None else reduced_bytes
    return gathers * ring_bytes("all_gather", gathered_bytes, dp) + ring_bytes("reduce_scatter", reduced, dp)


def tensor_block_bytes(activation_bytes: int, *, tp: int, blocks: int, micro_batches: int = 1) -> Fraction:
    """Predict tensor parallelism: four all-reduces a transformer block, two in forward and two in backward.

    activation_bytes: one micro-batch at a block's boundary, (batch, seq, hidden), unsharded.
    Source: Shoeybi et al. 2019 (Megatron-LM), section 3. Sequence parallelism replaces each all-reduce by an
    all-gather and a reduce-scatter of the same bytes (Korthikanti et al. 2022, section 4.2.2).
    """
    return 4 * blocks * micro_batches * ring_bytes("all_reduce", activation_bytes, tp)


def pipeline_bytes(activation_bytes: int, *, schedule: Schedule, pp: int, pp_rank: int, micro_batches: int) -> Fraction:
    """Predict one pipeline rank's sends: an activation to the next stage and a gradient to the one before.

    activation_bytes: what one micro-batch carries over a boundary between stages. Boundaries inside a rank
    (the bottom of a V) are free. Source: Narayanan et al. 2021, section 3.2 (PTD-P), point-to-point per micro-batch.
    """
    last = pp * schedule.stages_per_rank - 1
    stages = schedule.stages_of(pp_rank, pp)
    neighbours = [other for stage in stages for other in (stage - 1, stage + 1) if 0 <= other <= last]
    remote = sum(schedule.rank_of(other, pp) != pp_rank for other in neighbours)
    return micro_batches * remote * ring_bytes("send", activation_bytes, pp)
