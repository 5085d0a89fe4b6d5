"""What a pipeline makes of the seconds of its stages, and how many micro-batches it keeps in flight."""

from dataclasses import dataclass

import numpy as np

from paralab.axes.case import Case, Values
from paralab.axes.costs import AxisCost, Pass, Plan

# Schedules that fill a part of the bubble of 1F1B with gradients of weights: how many of these passes for each rank
# before it, and what is left of the bubble at least. zb-*: Qi et al. 2023, section 2.3; zbv: Qi et al. 2024;
# dualpipev: the cut of DualPipe that DeepSeek-V3 (2024, section 3.2.1) describes, half its bubble.
FILLED_BY = {
    "zb-h1": (2, 0.1),
    "zb-1p": (2, 0.1),
    "zb-h2": (3, 0.1),
    "zb-2p": (3, 0.1),
    "zbv": (3, 0.15),
    "dualpipev": (3, 0.5),
}
V_SHAPED = ("zbv", "dualpipev")


@dataclass(frozen=True)
class Ranks:
    """Seconds of one micro-batch on the first, the fullest middle and the last pipeline rank, each (cases,).

    total_s: of all ranks together.
    """

    first_s: Values
    middle_s: Values
    last_s: Values
    total_s: Values

    @property
    def slowest_s(self) -> Values:
        return np.maximum(np.maximum(self.first_s, self.middle_s), self.last_s)


class PipelineCost(AxisCost):
    """The messages between stages (Narayanan et al. 2021, section 2.2). The bubble follows from the stages' seconds."""

    def in_step(self, plan: Plan, compute: Pass) -> Values:
        """Return the seconds of a step that ranks wait for activations and their gradients on the way."""
        case, machine, k = plan.case, plan.machine, plan.constants
        # Megatron sends each tensor rank's share and gathers it inside the node; DeepSpeed sends all of it from each
        bytes_ = case.tokens * case.hidden * case.element_bytes / np.where(case.is_deepspeed, 1, case.tp)
        link, network = machine.intra_bytes_per_s * k.link_share, machine.inter_bytes_per_s * k.network_share
        inside_s, outside_s = bytes_ / link + k.message_latency_s, bytes_ / network + k.message_latency_s
        between = np.minimum(np.ceil(case.n_gpus / case.gpus_per_node), case.pp) - 1  # neighbours on different nodes
        exposed = np.where(case.is_deepspeed, k.messages_exposed_deepspeed, k.messages_exposed)
        slowest_s = np.where(between > 0, np.maximum(outside_s, inside_s), inside_s)
        steady_s = 2 * case.micro_batches * case.vpp * exposed * slowest_s
        filling_s = 2 * (between * slowest_s + (case.pp - 1 - between) * inside_s)
        return np.where(case.pp > 1, steady_s + filling_s, 0.0)


def schedule_s(plan: Plan, ranks: Ranks) -> Values:
    """Return the seconds of all passes of a step: the slowest rank's, and what it waits for the others."""
    return plan.case.micro_batches * ranks.slowest_s + bubble_s(plan.case, ranks)


def bubble_s(case: Case, ranks: Ranks) -> Values:
    """Return the seconds of a step that a rank waits because the pipeline fills and drains.

    A third pass for each rank is only there to fill it with where ranks take more micro-batches in before (ZB-H2).
    Passes take as long as each other, one more of them where backward first repeats the forward pass.
    """
    names, filled = list(FILLED_BY), list(FILLED_BY.values())
    passes = np.select([case.schedule == name for name in names], [float(n) for n, _ in filled], default=0.0)
    passes = np.where(case.micro_batches < 2 * case.pp - 1, np.minimum(passes, 2), passes)
    least = np.select([case.schedule == name for name in names], [low for _, low in filled], default=1.0)
    left = np.maximum(1 - passes / np.where(case.recompute == "full", 4, 3), least)
    return (ranks.total_s - ranks.slowest_s) * left / np.where(is_interleaved(case), case.vpp, 1)


def is_interleaved(case: Case) -> Values:
    """Return whether a rank's stages take turns: 1F1B, or a zero-bubble schedule of several stages a rank."""
    return (case.schedule == "interleaved") | ((case.schedule == "zb-1p") & (case.vpp > 1))


def passes_behind(case: Case) -> Values:
    """Return in how many passes of a micro-batch on a rank its stages finish, or first start, one after the other.

    Communication of a step hides there. Stages that take turns do so in rounds of a micro-batch for each rank, and each
    has done its last backward pass before the next one begins its own last round.
    """
    rounds = (case.pp * (case.vpp - 1) + 1) / case.vpp
    return np.where(is_interleaved(case), np.minimum(rounds, case.micro_batches), 1.0)


def is_v_shaped(case: Case) -> Values:
    """Return whether the first pipeline rank holds both ends of the model."""
    return (case.schedule == V_SHAPED[0]) | (case.schedule == V_SHAPED[1])


def in_flight(case: Case, rank: Values) -> Values:
    """Return how many micro-batches' activations a rank keeps at its fullest. rank: its number, from 0.

    1F1B keeps one for each rank behind it; interleaving adds (pp - 1) / (pp vpp) of a whole pipeline (Korthikanti et
    al. 2022, section 4.2.3). ZB-H1 and ZB-V keep on every rank as many as there are ranks, since those that 1F1B would
    have freed wait for the gradients of their weights; ZB-H2 nearly doubles it (Qi et al. 2023, section 2.3).
    """
    one = case.pp - rank
    after = np.where(case.schedule == "interleaved", one + (case.pp - 1) / case.vpp, one)
    doubled = (case.schedule == "zb-h2") | (case.schedule == "zb-2p")
    after = np.where(doubled, 2 * case.pp - 1, after)
    every = (case.schedule == "zb-h1") | (case.schedule == "zb-1p") | is_v_shaped(case)
    after = np.where(every, case.pp + np.where(case.schedule == "dualpipev", 0.5, 0.0), after)
    after = np.where(case.schedule == "gpipe", case.micro_batches, after)
    return np.where(case.pp > 1, np.minimum(case.micro_batches, after), 1.0)


def waiting(case: Case, rank: Values) -> Values:
    """Return for how many micro-batches a rank keeps what their gradients of weights will need, at its fullest moment.

    rank: its number, from 0. As torch.distributed.pipelining orders the passes: one more on each rank, and none on the
    first stage, which has no gradient of its input to make before; on a V all of them on the rank at its point. ZB-H2,
    which torch does not have, is two more on each rank (Qi et al. 2023, section 2.3).
    """
    ordered = (case.schedule == "zb-h1") | (case.schedule == "zb-1p")
    one = np.where(ordered & (rank > 0), (rank + 1) / case.vpp, 0.0)
    one = np.where((case.schedule == "zb-h2") | (case.schedule == "zb-2p"), 2 * rank / case.vpp, one)
    one = np.where((case.schedule == "zbv") & (rank == case.pp - 1), case.pp - 0.5, one)
    return np.where(case.pp > 1, np.minimum(case.micro_batches, one), 0.0)
