"""The closed forms against algorithms that are played through rank by rank."""

from fractions import Fraction

import pytest

from parallel.layout import SCHEDULES
from parallel.measure import forms


def _ring_sends(ranks: int, rounds: int) -> Fraction:
    """Bytes one rank sends per byte of buffer when a chunk of 1/ranks goes to the neighbour in every round."""
    return sum((Fraction(1, ranks) for _ in range(rounds)), Fraction(0))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ring_shares(ranks: int) -> None:
    assert forms.wire_share("reduce_scatter", ranks) == _ring_sends(ranks, ranks - 1)
    assert forms.wire_share("all_gather", ranks) == _ring_sends(ranks, ranks - 1)
    assert forms.wire_share("all_reduce", ranks) == _ring_sends(ranks, 2 * (ranks - 1))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_shares_of_rooted_operations_are_means_over_ranks(ranks: int) -> None:
    chain = [1] * (ranks - 1) + [0]
    assert forms.wire_share("broadcast", ranks) == Fraction(sum(chain), ranks)
    root_sends_parts = [Fraction(ranks - 1, ranks)] + [Fraction(0)] * (ranks - 1)
    assert forms.wire_share("scatter", ranks) == sum(root_sends_parts) / ranks


def test_unknown_operations_and_empty_groups_are_refused() -> None:
    with pytest.raises(KeyError):
        forms.wire_share("gossip", 2)
    with pytest.raises(ValueError, match="at least 1"):
        forms.wire_share("all_reduce", 0)


def test_fsdp_is_three_halves_of_ddp_without_padding() -> None:
    size = 4 * forms.fsdp_padded_numel([(8, 3), (4,)], dp=4)
    assert size == 4 * (24 + 4)
    assert forms.fsdp_bytes(size, dp=4) == Fraction(3, 2) * forms.ddp_bytes(size, dp=4)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("pp", [2, 4])
def test_pipeline_ranks_together_cross_every_boundary_twice(name: str, pp: int) -> None:
    schedule = SCHEDULES[name]
    stages = range(pp * schedule.stages_per_rank)
    crossings = sum(schedule.rank_of(a, pp) != schedule.rank_of(a + 1, pp) for a in stages[:-1])
    sent = sum(forms.pipeline_bytes(10, schedule=schedule, pp=pp, pp_rank=rank, micro_batches=3) for rank in range(pp))
    assert sent == 2 * 3 * 10 * crossings
