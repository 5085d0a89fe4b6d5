"""What expert parallelism adds to a step: tokens travel to their experts and back in every layer."""

import numpy as np

from paralab.axes.costs import AxisCost, Pass, Plan

HALF_BYTES = 2


class ExpertCost(AxisCost):
    """Two all-to-alls in forward and two in backward (GShard, Lepikhin et al. 2020)."""

    def in_layer(self, plan: Plan, compute: Pass) -> Pass:
        case, k = plan.case, plan.constants
        routed = case.tokens * case.experts_per_token * case.hidden * HALF_BYTES / case.tp
        near = np.clip(case.gpus_per_node, 1, case.ep)
        inside, outside = (near - 1) / case.ep, (case.ep - near) / case.ep  # shares of the tokens that leave the rank
        link, network = plan.machine.intra_bytes_per_s * k.link_share, plan.machine.inter_bytes_per_s * k.network_share
        seconds = routed * (inside / link + outside / network)
        once_s = np.where(case.is_mixture & (case.ep > 1), 2 * (seconds * k.expert_imbalance + k.latency_s), 0.0)
        return Pass(once_s, once_s).again(case.recompute == "full")
