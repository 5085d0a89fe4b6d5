"""What a pipeline makes of the seconds of its stages, and how many micro-batches it keeps in flight."""

from dataclasses import dataclass

import numpy as np

from paralab.axes.costs import AxisCost, Case, Pass, Plan, Values

# Share of the bubble of 1F1B that is left. zb-*: Qi et al. 2023 (section 3 and appendix); zbv: Qi et al. 2024, table 1;
# dualpipev: the cut of DualPipe that DeepSeek-V3 (2024, section 3.2.1) describes, half its bubble.
BUBBLE_LEFT = {"zb-h1": 1 / 3, "zb-1p": 1 / 3, "zb-h2": 0.1, "zb-2p": 0.1, "zbv": 0.15, "dualpipev": 0.5}
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
        crosses = case.n_gpus / case.pp >= case.gpus_per_node
        link, network = machine.intra_bytes_per_s * k.link_share, machine.inter_bytes_per_s * k.network_share
        one_s = bytes_ / np.where(crosses, network, link) + k.message_latency_s
        exposed = np.where(case.is_deepspeed, k.messages_exposed_deepspeed, k.messages_exposed)
        steady, filling = 2 * case.micro_batches * case.vpp * exposed, 2 * (case.pp - 1)
        return np.where(case.pp > 1, (steady + filling) * one_s, 0.0)


def schedule_s(plan: Plan, ranks: Ranks) -> Values:
    """Return the seconds of all passes of a step: the slowest rank's, and what it waits for the others."""
    bubble_s = (ranks.total_s - ranks.slowest_s) * bubble_share(plan.case)
    return plan.case.micro_batches * ranks.slowest_s + bubble_s


def bubble_share(case: Case) -> Values:
    """Return the share of the other stages' time that a rank waits in a step."""
    left = np.select([case.schedule == name for name in BUBBLE_LEFT], list(BUBBLE_LEFT.values()), default=1.0)
    return left / np.where(is_interleaved(case), case.vpp, 1)


def is_interleaved(case: Case) -> Values:
    """Return whether a rank's stages take turns: 1F1B, or a zero-bubble schedule of several stages a rank."""
    return (case.schedule == "interleaved") | ((case.schedule == "zb-1p") & (case.vpp > 1))


def is_v_shaped(case: Case) -> Values:
    """Return whether the first pipeline rank holds both ends of the model."""
    return (case.schedule == V_SHAPED[0]) | (case.schedule == V_SHAPED[1])


def in_flight(case: Case, rank: Values) -> Values:
    """Return how many micro-batches' activations a rank keeps at its fullest. rank: its number, from 0.

    1F1B keeps one for each rank behind it; interleaving adds (pp - 1) / (pp vpp) of a whole pipeline (Korthikanti et
    al. 2022, section 4.2.3); ZB-H2 doubles it (Qi et al. 2023, table 1).
    """
    one = case.pp - rank
    after = np.where(is_interleaved(case), one + (case.pp - 1) / case.vpp, one)
    doubled = (case.schedule == "zb-h2") | (case.schedule == "zb-2p")
    after = np.where(doubled, 2 * case.pp - 1 - rank, after)
    after = np.where((case.schedule == "zbv") | (case.schedule == "dualpipev"), case.pp, after)
    after = np.where(case.schedule == "gpipe", case.micro_batches, after)
    return np.where(case.pp > 1, np.minimum(case.micro_batches, after), 1.0)
