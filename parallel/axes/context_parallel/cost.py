"""What context parallelism adds to a step: keys and values go round a ring, or heads are exchanged (Ulysses)."""

import numpy as np

from paralab.axes.case import Case, Values
from paralab.axes.costs import AxisCost, Pass, Plan, group_bytes_per_s

# Launches of a further round of a ring, or of the exchanges of heads, as shares of those of a layer (22, host.py): two
# messages, an attention kernel and the merging of its result; four collectives
RING_ROUND, EXCHANGES = 8 / 22, 4 / 22
MERGED_BYTES = 10  # of an element of attention's result for each further round: a sum in fp32 and a part in 16 bits


class ContextCost(AxisCost):
    """Ring attention (Liu et al. 2023) or all-to-all (Jacobs et al. 2023) around the attention core of every layer."""

    def in_layer(self, plan: Plan, compute: Pass) -> Pass:
        """Wait for keys and values, or for heads; a ring merges the result of each further round with those before."""
        case, k = plan.case, plan.constants
        rate = group_bytes_per_s(
            plan, degree=case.cp, inner=case.tp, intra_share=k.link_share, inter_share=k.network_share
        )
        rounds = case.cp - 1
        keys = case.tokens * 2 * case.kv_heads * case.head_dim / case.tp * case.element_bytes
        ring_s = rounds * (keys / rate + k.message_latency_s)
        # with a causal mask half of the rounds are about half of the queries
        merged = 0.75 * rounds * case.tokens * case.heads * case.head_dim / case.tp * MERGED_BYTES
        merged_s = merged / (plan.machine.memory_bytes_per_s * k.memory_share)
        heads = case.tokens * 2 * (case.heads + case.kv_heads) * case.head_dim / case.tp * case.element_bytes
        exchange_s = heads * rounds / case.cp / rate
        once_s = np.where(is_ring(case), ring_s * k.ring_exposed + merged_s, exchange_s) + k.latency_s * 2
        once_s = np.where(case.cp > 1, once_s, 0.0)
        return Pass(once_s, 2 * once_s).again((case.recompute == "full") | (case.recompute == "selective"))

    def on_host(self, plan: Plan) -> Pass:
        """Launch each further round of a ring, compiled or not, or the exchanges of heads."""
        case, k = plan.case, plan.constants
        launches = np.where(is_ring(case), (case.cp - 1) * RING_ROUND, EXCHANGES)
        scale = np.where(case.cp > 1, launches * np.where(plan.is_of_2021, 1.0, k.host_new), 0.0)
        again = (case.recompute == "full") | (case.recompute == "selective")
        return Pass(k.host_forward_s * scale, k.host_backward_s * scale).again(again)


def is_ring(case: Case) -> Values:
    """Return whether keys and values go round, and each rank has queries of all heads."""
    return (case.cp > 1) & (case.cp_style != "ulysses")
