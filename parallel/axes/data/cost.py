"""What data parallelism and ZeRO add to a step: gradients are reduced, and weights that are divided are gathered."""

import numpy as np

from paralab.axes import eight_bits
from paralab.axes.costs import AxisCost, Case, Pass, Plan, Values, group_bytes_per_s
from paralab.axes.weights import local_dense, local_embedding, local_experts, local_output

WEIGHT_BYTES = 2  # of a weight that is gathered, in 16 bits


class DataCost(AxisCost):
    """An all-reduce a step (stages 0 to 2), or two gathers and a reduction a micro-batch (stage 3)."""

    def in_layer(self, plan: Plan, compute: Pass) -> Pass:
        """Stage 3 gathers a layer before its forward and its backward pass; a pipeline keeps what it has gathered."""
        case = plan.case
        sharded = (case.zero == 3) & (case.pp == 1) & (case.dp * case.cp > 1)
        extra = (local_embedding(case) + local_output(case)) / case.layers
        weights = local_dense(case) + local_experts(case) + extra
        # PyTorch's FSDP gathers weights in the 8 bits that products take them in
        narrow = (case.precision == "fp8") & (case.framework == "torchtitan")
        gather_s = weights * np.where(narrow, 1, WEIGHT_BYTES) / _ring_rate(plan)
        reduce_s = weights * case.gradient_bytes / _ring_rate(plan)
        forward_s = _exposed(plan, gather_s, compute.forward_s)
        backward_s = _exposed(plan, gather_s + reduce_s, compute.backward_s)
        return Pass(np.where(sharded, forward_s, 0.0), np.where(sharded, backward_s, 0.0))

    def on_host(self, plan: Plan) -> Pass:
        """Unlike a wrapped model, one that is divided launches collectives and copies for every layer."""
        case, k = plan.case, plan.constants
        sharded = case.zero == 3
        return Pass(np.where(sharded, k.host_gather_s, 0.0), np.where(sharded, 2 * k.host_gather_s, 0.0))

    def in_step(self, plan: Plan, compute: Pass) -> Values:
        case, k = plan.case, plan.constants
        replicas = case.dp * case.cp
        weights = fullest_weights(case)
        gradients_s = weights * case.gradient_bytes / _ring_rate(plan)
        weights_s = weights * WEIGHT_BYTES / _ring_rate(plan)
        # an all-reduce is a reduction and a gather; DeepSpeed reduces whole gradients in stage 1 as well
        reduces = np.where((case.zero == 0) | ((case.zero == 1) & case.is_deepspeed), 2, 1)
        update_s = np.where(case.zero > 0, weights_s, 0.0)
        in_step = (replicas > 1) & ((case.zero < 3) | (case.pp > 1))
        once = np.where(in_step, reduces * gradients_s + update_s, 0.0) + _between_groups_s(plan, weights)
        # gradients behind the last backward pass; weights that were updated behind the first forward pass
        behind_s = compute.backward_s + np.where(case.zero > 0, compute.forward_s, 0.0)
        hidden = np.minimum(once * k.data_hidden, behind_s)
        return np.where(case.dp_overlap, once - hidden, once)


def _between_groups_s(plan: Plan, weights: Values) -> Values:
    """Return the seconds of reducing what a rank keeps of the gradients over the groups of hybrid sharding.

    weights: of the fullest rank, before ZeRO divides them (Zhao et al. 2023, section 3.2.2).
    """
    case, k = plan.case, plan.constants
    groups = case.dp * case.cp / case.sharded_over
    inner = case.tp * case.sharded_over
    rate = group_bytes_per_s(plan, degree=groups, inner=inner, intra_share=k.link_share, inter_share=k.network_share)
    bytes_ = 2 * (groups - 1) / groups * weights / case.sharded_over * case.gradient_bytes
    return np.where((case.zero > 0) & (groups > 1), bytes_ / rate + k.latency_s, 0.0)


def _exposed(plan: Plan, seconds: Values, compute_s: Values) -> Values:
    """Return what a layer waits for communication beside its computation, of which a part is paid even where hidden."""
    case, k = plan.case, plan.constants
    beside = np.maximum(seconds - compute_s, 0) + k.overlap_cost * np.minimum(seconds, compute_s)
    return np.where(case.dp_overlap, beside, seconds)


def _ring_rate(plan: Plan) -> Values:
    """Return the bytes per second at which a rank passes on gathered or reduced data."""
    case, k = plan.case, plan.constants
    degree = case.sharded_over
    share = np.where((case.zero == 3) & case.is_deepspeed, k.deepspeed_network_share, k.network_share)
    rate = group_bytes_per_s(plan, degree=degree, inner=case.tp, intra_share=k.link_share, inter_share=share)
    return rate * degree / np.maximum(degree - 1, 1)


def fullest_weights(case: Case) -> Values:
    """Return the weights of the pipeline rank that has most, before ZeRO divides them."""
    layer = local_dense(case) + local_experts(case)
    first, middle, last = (case.held("weights", rank) for rank in ("first", "middle", "last"))
    first = first * layer + local_embedding(case) + np.where(case.pp == 1, local_output(case), 0)
    last = last * layer + np.where(case.pp > 1, local_output(case), 0)
    return np.maximum(np.maximum(first, last), middle * layer)


def updated_share(case: Case) -> Values:
    """Return the share of its weights that a rank updates: ZeRO divides them over the data and context ranks.

    Hybrid sharding divides them over those of a group.
    """
    return np.where(case.zero >= 1, 1 / case.sharded_over, 1.0)


def bytes_per_weight(case: Case) -> dict[str, Values]:
    """Return the bytes that a weight has by category, nothing divided: each a value or an array (cases,).

    Mixed precision keeps weights in 16 bits beside a master copy and two moments (Rajbhandari et al. 2020, section
    3.1); in fp16 a gradient is converted to the precision of the master copy before the update.
    """
    moments = np.where((case.optimizer == "sgd") | (case.optimizer == "lion"), 1, 2)
    moment_bytes = np.where(case.optimizer == eight_bits.NAME, eight_bits.BYTES, case.state_bytes)
    return {
        "weights": np.where(case.precision == "fp32", 4, WEIGHT_BYTES),
        "gradients": case.gradient_bytes,
        "master weights": np.where(case.precision == "fp32", 0, case.state_bytes),
        "moments": moments * moment_bytes,
        "converted gradients": np.where(case.precision == "fp16", case.state_bytes, 0),
    }


def state_bytes(plan: Plan, weights: Values) -> Values:
    """Return the bytes of weights, gradients and optimizer states on a rank.

    weights: that it holds before ZeRO divides them. Mixed precision keeps weights in 16 bits beside a master copy and
    two moments (Rajbhandari et al. 2020, section 3.1); in fp16 a gradient is converted to the precision of the master
    copy before the update (20 bytes a weight in Megatron-LM). FSDP keeps only what is divided, and gathers in 16 bits.
    """
    case = plan.case
    divided = np.maximum(case.sharded_over, 1)
    each = bytes_per_weight(case)
    working, moments = each["weights"], each["moments"]
    optimizer = each["master weights"] + moments + each["converted gradients"]
    again = np.where(case.is_deepspeed & (case.zero == 1), case.gradient_bytes, 0)
    plain = (
        working
        + case.gradient_bytes / np.where(case.zero >= 2, divided, 1)
        + optimizer / np.where(case.zero >= 1, divided, 1)
        + again
    )
    sharded = np.maximum(case.state_bytes, working) * (1 + moments / case.state_bytes) + case.gradient_bytes
    sharded = sharded / divided
    deepspeed = (working + case.gradient_bytes + optimizer) / divided
    third = np.where(case.is_deepspeed, deepspeed, sharded)
    return weights * np.where(case.zero == 3, third, plain)


def gathered_bytes(plan: Plan, layer: Values, ends: Values, layers: Values) -> Values:
    """Return the bytes of what ZeRO-3 has gathered at once. layer, ends: weights of a layer and of the largest end.

    Two layers with their gradients, or an end; under a pipeline all layers of the rank stay gathered.
    """
    case, k = plan.case, plan.constants
    two = np.maximum(2 * layer, ends) * (WEIGHT_BYTES + case.gradient_bytes)
    all_layers = layers * layer * (WEIGHT_BYTES + k.mem_unreduced_bytes)
    return np.where(case.zero == 3, np.where(case.pp > 1, all_layers, two), 0.0)


def buffer_bytes(plan: Plan) -> Values:
    """Return the bytes of the buckets that gradients are reduced in."""
    case, k = plan.case, plan.constants
    buckets = np.where(case.is_deepspeed & (case.zero > 0), k.mem_deepspeed_buckets_bytes, k.mem_buckets_bytes)
    return np.where(case.dp > 1, buckets, 0.0)
