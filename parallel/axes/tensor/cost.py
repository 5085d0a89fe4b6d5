"""What tensor parallelism adds to a step: collectives around attention and the MLP of every layer."""

import numpy as np

from paralab.axes.case import CountedCase, Values
from paralab.axes.costs import AxisCost, Pass, Plan, group_bytes_per_s


class TensorCost(AxisCost):
    """Two all-reduces in forward and two in backward; with sequence parallelism the same bytes as gathers and scatters.

    Megatron-LM (Shoeybi et al. 2019, section 3; Korthikanti et al. 2022, section 4.2.2).
    """

    def in_layer(self, plan: Plan, compute: Pass) -> Pass:
        case, k = plan.case, plan.constants
        # what products take in 8 bits is cast before it is gathered, and what they give is scattered in 16
        gathered = np.where(case.sequence_parallel & case.is_narrow, 1, case.element_bytes)
        there_and_back = gathered + case.element_bytes
        bytes_ = case.tokens * case.hidden * there_and_back * (case.tp - 1) / case.tp
        rate = group_bytes_per_s(
            plan, degree=case.tp, inner=1, intra_share=link_share(plan), inter_share=k.network_share
        )
        # a gather and a scatter have the steps of one all-reduce between them, and begin twice
        latency_s = collective_latency_s(plan, case.tp) + np.where(case.sequence_parallel, k.latency_s, 0.0)
        once_s = np.where(case.tp > 1, bytes_ / rate + latency_s, 0.0)
        # what overlaps reads the memory of the other ranks, which fast links alone let it do
        beside = case.tp_overlap & (case.tp <= case.gpus_per_node)
        exposed = np.where(beside, k.tensor_exposed, 1.0)
        calls = case.block_reductions if isinstance(case, CountedCase) else 2
        both_s = calls * once_s * exposed
        # the gather of a layer's input is made once more in backward, for the gradient of the weight, and runs beside
        # the product that makes the gradient of the input (Korthikanti et al. 2022, section 4.2.2)
        again_s = np.maximum(both_s * gathered / there_and_back - compute.backward_s / 3, 0.0)
        again_s = np.where(case.sequence_parallel, again_s, 0.0)
        return Pass(both_s, both_s + again_s).again(case.recompute == "full")

    def on_host(self, plan: Plan) -> Pass:
        case, k = plan.case, plan.constants
        # measured up to eight ranks; of more of them the slowest is later by the logarithm of their number
        growth = (np.minimum(case.tp, 8) / 8) ** k.host_collective_growth * (1 + np.log2(np.maximum(case.tp / 8, 1)))
        calls_s = np.where(case.tp > 1, 2 * k.host_collective_s * growth, 0.0)
        scale = np.where(plan.is_of_2021, 1.0, k.host_new)
        return Pass(calls_s * scale, calls_s * scale).again(case.recompute == "full")


def link_share(plan: Plan) -> Values:
    """Return the share of the links of a GPU that a ring of a few ranks inside a node uses.

    Behind a switch few ranks use nearly as much as many. Without one (V100 in nodes of 8 or fewer) the links go to
    different neighbours, and a ring uses those between its ranks.
    """
    case, k = plan.case, plan.constants
    switched = np.where(case.tp == 2, k.link_share_of_two, np.where(case.tp <= 4, k.link_share_of_four, 1.0))
    meshed = np.where(case.tp == 2, k.mesh_share_of_two, np.where(case.tp <= 4, k.mesh_share_of_four, 1.0))
    mesh = (plan.machine.arch == "Volta") & (case.gpus_per_node <= 8)
    return k.link_share * np.where(mesh, meshed, switched)


def collective_latency_s(plan: Plan, ranks: Values) -> Values:
    """Return the seconds that a collective of no bytes takes inside a node."""
    k = plan.constants
    return k.latency_s + k.latency_rank_s * ranks
