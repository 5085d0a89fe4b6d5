"""What expert parallelism adds to a step: tokens travel to their experts and back in every layer."""

import numpy as np

from paralab.axes.costs import AxisCost, Pass, Plan


class ExpertCost(AxisCost):
    """Two all-to-alls in forward and two in backward (GShard, Lepikhin et al. 2020)."""

    def in_layer(self, plan: Plan, compute: Pass) -> Pass:
        case, k = plan.case, plan.constants
        token_bytes = case.tokens * case.hidden * case.element_bytes / case.tp
        near = np.clip(case.gpus_per_node, 1, case.ep)
        inside = case.experts_per_token * (near - 1) / near  # copies of a token that go round inside a node
        # a token goes to each other node once, however many of its experts are there (DeepSeek-V3 2024, section 3.2.2)
        nodes = case.ep / near
        outside = (nodes - 1) * (1 - (1 - 1 / nodes) ** case.experts_per_token)
        link, network = plan.machine.intra_bytes_per_s * k.link_share, plan.machine.inter_bytes_per_s * k.network_share
        seconds = token_bytes * (inside / link + outside / network)
        once_s = np.where(case.is_mixture & (case.ep > 1), 2 * (seconds * k.expert_imbalance + k.latency_s), 0.0)
        once_s = once_s * case.mixture_share  # of the layers that have experts
        return Pass(once_s, once_s).again(case.recompute == "full")
