"""What the ranks of a pipeline hold: how many layers, and how many of these have experts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from paralab.axes.case import Values
from paralab.axes.pipeline.cost import V_SHAPED


@dataclass(frozen=True)
class WithExperts:
    """Which layers of a mixture have experts: every n-th one behind the first ones, which are dense."""

    dense_layers: int = 0
    every: int = 1

    def before(self, layer: int) -> int:
        """Return how many layers before this one have experts. layer: its number, from 0 on."""
        return max(layer - self.dense_layers, 0) // self.every

    def shares(self, stages: Sequence[int], pp: int, vpp: int, schedule: str) -> dict[str, float]:
        """Return the fields `mixture_*` of a case. stages: layers of the pp x vpp stages in model order.

        Of ranks between the first and the last one it is the largest: experts have most of the weights.
        """
        ends = np.cumsum((0, *stages)).tolist()
        mixtures = [self.before(end) - self.before(begin) for begin, end in pairwise(ends)]
        with_experts, layers = (by_rank(of, pp, vpp, schedule) for of in (mixtures, stages))
        shares = [of / max(all_, 1) for of, all_ in zip(with_experts, layers, strict=True)]
        between = max(shares[1:-1], default=1.0)
        found = {"first": shares[0], "middle": between, "last": shares[-1], "held": between}
        return {f"mixture_{rank}": share for rank, share in found.items()}


def by_rank(of_stages: Sequence[int], pp: int, vpp: int, schedule: str) -> list[int]:
    """Return the sum of what the stages of each rank have. of_stages: of the pp x vpp stages in model order."""
    v_shaped = schedule in V_SHAPED and vpp == 2
    ranks = [*range(pp), *range(pp - 1, -1, -1)] if v_shaped else list(range(pp)) * vpp
    return [sum(n for n, rank in zip(of_stages, ranks, strict=True) if rank == r) for r in range(pp)]


def held_by(
    stages: Sequence[int], pp: int, vpp: int, schedule: str, with_experts: WithExperts = WithExperts()
) -> dict[str, float]:
    """Return the fields of a case that say what its ranks hold. stages: layers of all stages in model order."""
    v_shaped = schedule in V_SHAPED and vpp == 2
    held = by_rank(stages, pp, vpp, schedule)
    middle = held[1:-1]
    # 1F1B keeps a micro-batch for each rank behind; on a V all ranks keep as many
    fullest = max(range(1, pp - 1), key=lambda r: held[r] * (1 if v_shaped else pp - r)) if middle else 0
    return {
        "layers_first": held[0],
        "layers_middle": max(middle, default=0),
        "layers_last": held[-1],
        "layers_held": held[fullest] if middle else 0,
        "held_rank": fullest,
    } | with_experts.shares(stages, pp, vpp, schedule)


def evenly(layers: Values, pp: Values, vpp: Values, schedule: Values) -> dict[str, Values]:
    """Return the fields `layers_*` and `held_rank` of a case whose layers are divided evenly over pp x vpp stages.

    Each a value or an array (cases,). What is left over goes to the first stages, one layer each.
    """
    stages = pp * vpp
    each, left = layers // stages, layers % stages
    v_shaped = ((schedule == V_SHAPED[0]) | (schedule == V_SHAPED[1])) & (vpp == 2)

    def held(rank: Values) -> Values:
        in_turn = np.maximum(-((rank - left) // pp), 0)  # of the stages rank, rank + pp, ...: those before `left`
        back_and_forth = 1 * (rank < left) + 1 * (2 * pp - 1 - rank < left)
        return vpp * each + np.where(v_shaped, back_and_forth, in_turn)

    inside = pp > 2
    second = np.where(inside, held(1), 0)
    fullest = np.where(v_shaped & inside, np.maximum(second, held(pp - 2)), second)
    return {
        "layers_first": held(0),
        "layers_middle": fullest,
        "layers_last": held(pp - 1),
        "layers_held": np.where(v_shaped, fullest, second),
        "held_rank": np.where(inside, 1, 0),
    }
