"""What context parallelism adds to a step: keys and values go round a ring, or heads are exchanged (Ulysses)."""

import numpy as np

from paralab.axes.costs import AxisCost, Pass, Plan, group_bytes_per_s


class ContextCost(AxisCost):
    """Ring attention (Liu et al. 2023) or all-to-all (Jacobs et al. 2023) around the attention core of every layer."""

    def in_layer(self, plan: Plan, compute: Pass) -> Pass:
        case, k = plan.case, plan.constants
        rate = group_bytes_per_s(
            plan, degree=case.cp, inner=case.tp, intra_share=k.link_share, inter_share=k.network_share
        )
        keys = case.tokens * 2 * case.kv_heads * case.head_dim / case.tp * case.element_bytes
        ring_s = (case.cp - 1) * keys / rate
        heads = case.tokens * 2 * (case.heads + case.kv_heads) * case.head_dim / case.tp * case.element_bytes
        exchange_s = heads * (case.cp - 1) / case.cp / rate
        ring = case.cp_style != "ulysses"
        once_s = np.where(ring, ring_s * k.ring_exposed, exchange_s) + k.latency_s * 2
        once_s = np.where(case.cp > 1, once_s, 0.0)
        return Pass(once_s, 2 * once_s).again((case.recompute == "full") | (case.recompute == "selective"))
