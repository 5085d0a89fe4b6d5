"""The closed forms against algorithms that are played through rank by rank."""

from fractions import Fraction

import pytest

from paralab.axes import forms


def _ring_sends(ranks: int, rounds: int) -> Fraction:
    """Bytes one rank sends per byte of buffer when a chunk of 1/ranks goes to the neighbour in every round."""
    return sum((Fraction(1, ranks) for _ in range(rounds)), Fraction(0))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ring_shares(ranks: int) -> None:
    assert forms.ring_share("reduce_scatter", ranks) == _ring_sends(ranks, ranks - 1)
    assert forms.ring_share("all_gather", ranks) == _ring_sends(ranks, ranks - 1)
    assert forms.ring_share("all_reduce", ranks) == _ring_sends(ranks, 2 * (ranks - 1))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_shares_of_rooted_operations_are_means_over_ranks(ranks: int) -> None:
    chain = [1] * (ranks - 1) + [0]
    assert forms.ring_share("broadcast", ranks) == Fraction(sum(chain), ranks)
    root_sends_parts = [Fraction(ranks - 1, ranks)] + [Fraction(0)] * (ranks - 1)
    assert forms.ring_share("scatter", ranks) == sum(root_sends_parts) / ranks


def test_unknown_operations_and_empty_groups_are_refused() -> None:
    with pytest.raises(KeyError):
        forms.ring_share("gossip", 2)
    with pytest.raises(ValueError, match="at least 1"):
        forms.ring_share("all_reduce", 0)


MIB = 1 << 20


@pytest.mark.parametrize(
    ("op", "ranks", "payload_bytes", "measured"),
    [
        # A mean over the ranks: bytes that left the interfaces of as many hosts, over the payload (torch 2.13).
        ("all_reduce", 2, 8 * MIB, 1.008), ("all_reduce", 3, 12 * MIB, 1.341), ("all_reduce", 4, 16 * MIB, 1.505),
        ("all_gather", 2, 8 * MIB, 0.505), ("all_gather", 3, 12 * MIB, 0.672), ("all_gather", 4, 16 * MIB, 0.751),
        ("reduce_scatter", 2, 8 * MIB, 1.011), ("reduce_scatter", 3, 12 * MIB, 1.338),
        ("reduce_scatter", 4, MIB, 1.507), ("reduce_scatter", 4, 16 * MIB, 1.506),
        ("all_to_all", 2, 8 * MIB, 0.502), ("all_to_all", 3, 12 * MIB, 0.673), ("all_to_all", 4, 16 * MIB, 0.752),
        ("broadcast", 2, 8 * MIB, 0.501), ("broadcast", 3, 12 * MIB, 0.671), ("broadcast", 4, 16 * MIB, 0.753),
        ("gather", 2, 8 * MIB, 0.252), ("gather", 3, 12 * MIB, 0.223), ("gather", 4, 16 * MIB, 0.188),
        ("scatter", 2, 8 * MIB, 0.252), ("scatter", 3, 12 * MIB, 0.223), ("scatter", 4, 16 * MIB, 0.188),
        ("send", 2, MIB // 4, 1.004), ("send", 3, 4 * MIB, 1.001), ("send", 4, 4 * MIB, 1.005),
        ("reduce", 2, MIB // 2, 0.753), ("reduce", 2, 4 * MIB, 0.751), ("reduce", 2, 8 * MIB, 1.014),
        ("reduce", 3, 4 * MIB, 0.890), ("reduce", 3, 8 * MIB, 1.002), ("reduce", 3, 12 * MIB, 1.059),
        ("reduce", 4, 800_000, 0.942), ("reduce", 4, 8 * MIB, 0.941), ("reduce", 4, 16 * MIB, 1.064),
    ],
)  # fmt: skip
def test_gloo_sends_what_was_measured(op: str, ranks: int, payload_bytes: int, measured: float) -> None:
    predicted = forms.wire_bytes(op, payload_bytes, ranks, backend="gloo") / payload_bytes
    assert float(predicted) == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "reduce_scatter", "reduce", "broadcast", "send"])
def test_what_was_not_measured_is_that_of_a_ring(op: str) -> None:
    assert forms.wire_bytes(op, 8 * MIB, 4, backend="nccl") == forms.ring_bytes(op, 8 * MIB, 4)


def test_a_rank_alone_sends_nothing() -> None:
    assert {forms.wire_bytes(op, MIB, 1, backend="gloo") for op in ("all_reduce", "reduce_scatter", "reduce")} == {0}
    assert forms.wire_bytes("reduce", 0, 4, backend="gloo") == 0


def test_fsdp_rounds_the_rows_of_a_parameter_up() -> None:
    assert forms.fsdp_padded_numel([(8, 3), (5,), (1, 2)], dp=4) == 24 + 8 + 8
