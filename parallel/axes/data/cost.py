"""What data parallelism and ZeRO add to a step: gradients are reduced, and weights that are divided are gathered."""

from dataclasses import dataclass

import numpy as np

from paralab.axes import eight_bits
from paralab.axes.case import Case, Values
from paralab.axes.costs import AxisCost, Pass, Plan, group_bytes_per_s, host_copy_s
from paralab.axes.weights import local_dense, local_embedding, local_experts, local_output

DEEPSPEED_BUCKET = 5e8  # weights whose gradients are reduced at once: its reduce_bucket_size, where none is given


@dataclass(frozen=True)
class Weights:
    """Weights of a rank, before ZeRO divides them: those of experts, which fewer ranks hold, and all others."""

    dense: Values
    experts: Values = 0.0

    @property
    def total(self) -> Values:
        return self.dense + self.experts

    def with_dense(self, more: Values) -> "Weights":
        """Return these and others that are not of experts."""
        return Weights(self.dense + more, self.experts)


def by_micro_batch(case: Case) -> Values:
    """Return whether gradients are reduced after every micro-batch, to keep no whole ones: stages 2 and 3.

    A pipeline of PyTorch keeps what it has gathered, and whole gradients, until its last micro-batch.
    """
    return (case.zero >= 2) & np.logical_not(keeps_whole(case)) & (case.dp * case.cp > 1)


def keeps_whole(case: Case) -> Values:
    """Return whether gradients, and what is gathered of weights, stay whole until a pipeline's last micro-batch."""
    return (case.pp > 1) & np.logical_not(case.is_deepspeed)


def gathers_by_micro_batch(case: Case) -> Values:
    """Return whether weights are gathered for every micro-batch: in stage 3, and in stage 2 of PyTorch."""
    return by_micro_batch(case) & ((case.zero == 3) | np.logical_not(case.is_deepspeed))


class DataCost(AxisCost):
    """An all-reduce a step (stages 0 and 1), or a reduction and gathers a micro-batch (stages 2 and 3)."""

    def in_layer(self, plan: Plan, compute: Pass) -> Pass:
        """Stage 3 gathers a layer before its forward and its backward pass, stage 2 before the former.

        FSDP copies what lies on the host to the device before it gathers that, and reduced gradients back.
        """
        case = plan.case
        extra = (local_embedding(case) + local_output(case)) / case.layers
        layer = Weights(local_dense(case) + extra, local_experts(case))
        # PyTorch's FSDP gathers weights in the 8 bits that products take them in
        narrow = (case.precision == "fp8") & (case.framework == "torchtitan")
        gather_s = _passed_on_s(plan, layer, np.where(narrow, 1, case.element_bytes))
        buckets = np.maximum(layer.total / DEEPSPEED_BUCKET, 1 / case.layers)  # which DeepSpeed reduces, and no layers
        starts = np.where(case.is_deepspeed & (case.zero == 2), np.minimum(buckets, 1), 1.0)
        reduce_s = _passed_on_s(plan, layer, case.gradient_bytes, starts)
        gather_s = np.where(gathers_by_micro_batch(case), gather_s, 0.0)
        reduce_s = np.where(by_micro_batch(case), reduce_s, 0.0)
        kept = layer.dense / np.maximum(case.sharded_over, 1) + layer.experts / case.experts_sharded_over
        offloaded = np.where(case.offload == "parameters", kept, 0.0)
        gather_s = gather_s + host_copy_s(plan, offloaded * bytes_per_weight(case)["weights"])
        reduce_s = reduce_s + host_copy_s(plan, offloaded * case.gradient_bytes)
        again_s = np.where(case.zero == 3, gather_s, 0.0)
        return Pass(_exposed(plan, gather_s, compute.forward_s), _exposed(plan, again_s + reduce_s, compute.backward_s))

    def on_host(self, plan: Plan) -> Pass:
        """Unlike a wrapped model, one that is divided launches collectives and copies for every layer."""
        case, k = plan.case, plan.constants
        third, second = case.zero == 3, by_micro_batch(case) & (case.zero == 2)
        gathers = third | (second & gathers_by_micro_batch(case))
        return Pass(k.host_gather_s * gathers, k.host_gather_s * (2 * third + 1 * second))

    def in_step(self, plan: Plan, compute: Pass) -> Values:
        case, k = plan.case, plan.constants
        weights = fullest_weights(case)
        # an all-reduce is a reduction and a gather; DeepSpeed reduces whole gradients in stage 1 as well
        reduces = np.where((case.zero == 0) | ((case.zero == 1) & case.is_deepspeed), 2, 1)
        reduced_s = reduces * _passed_on_s(plan, weights, case.gradient_bytes)
        gathered_s = np.where(case.zero > 0, _passed_on_s(plan, weights, case.element_bytes), 0.0)
        once = np.where(by_micro_batch(case), 0.0, reduced_s) + np.where(gathers_by_micro_batch(case), 0.0, gathered_s)
        once = np.where(case.dp * case.cp > 1, once, 0.0) + _between_groups_s(plan, weights)
        # gradients behind the last backward pass; weights that were updated behind the first forward pass
        behind_s = compute.backward_s + np.where(case.zero > 0, compute.forward_s, 0.0)
        hidden = np.minimum(once * k.data_hidden, behind_s)
        each = bytes_per_weight(case)  # gradients to the host, updated weights back
        moved = np.where(case.offload == "optimizer", updated_weights(case), 0.0)
        moved_s = host_copy_s(plan, moved * (each["gradients"] + each["weights"]))
        return np.where(case.dp_overlap, once - hidden, once) + moved_s


def _between_groups_s(plan: Plan, weights: Weights) -> Values:
    """Return the seconds of reducing what a rank keeps of the gradients over the groups of hybrid sharding.

    weights: of the fullest rank, before ZeRO divides them (Zhao et al. 2023, section 3.2.2).
    """
    case, k = plan.case, plan.constants
    groups = case.dp * case.cp / case.sharded_over
    inner = case.tp * case.sharded_over
    rate = group_bytes_per_s(plan, degree=groups, inner=inner, intra_share=k.link_share, inter_share=k.network_share)
    kept = weights.dense / case.sharded_over + weights.experts / case.experts_sharded_over
    bytes_ = 2 * (groups - 1) / groups * kept * case.gradient_bytes
    return np.where((case.zero > 0) & (groups > 1), bytes_ / rate + k.latency_s, 0.0)


def _exposed(plan: Plan, seconds: Values, compute_s: Values) -> Values:
    """Return what a layer waits for communication beside its computation, of which a part is paid even where hidden."""
    case, k = plan.case, plan.constants
    beside = np.maximum(seconds - compute_s, 0) + k.overlap_cost * np.minimum(seconds, compute_s)
    return np.where(case.dp_overlap, beside, seconds)


def _passed_on_s(plan: Plan, weights: Weights, bytes_each: Values, starts: Values = 1.0) -> Values:
    """Return the seconds of gathering or of reducing weights, each over the ranks that hold the same ones.

    starts: how many collectives it takes.
    """
    case = plan.case
    dense_s = weights.dense * bytes_each / _ring_rate(plan, case.sharded_over, case.tp)
    inner = case.ep * case.expert_tensor_ranks  # ranks between those that hold the same experts
    experts_s = weights.experts * bytes_each / _ring_rate(plan, case.experts_sharded_over, inner)
    dense_s = dense_s + np.where(case.sharded_over > 1, starts * _ring_latency_s(plan, case.sharded_over), 0.0)
    return dense_s + np.where(case.experts_sharded_over > 1, experts_s, 0.0)


def _ring_latency_s(plan: Plan, ranks: Values) -> Values:
    """Return the seconds of a gather of no bytes: a ring has a step for each rank, and an all-reduce has two."""
    return plan.constants.latency_s + plan.constants.latency_rank_s / 2 * ranks


def _ring_rate(plan: Plan, degree: Values, inner: Values) -> Values:
    """Return the bytes per second at which a rank passes on gathered or reduced data."""
    case, k = plan.case, plan.constants
    share = np.where(
        (case.zero == 3) & case.is_deepspeed & case.keeps_scores, k.deepspeed_network_share, k.network_share
    )
    rate = group_bytes_per_s(plan, degree=degree, inner=inner, intra_share=k.link_share, inter_share=share)
    return rate * degree / np.maximum(degree - 1, 1)


def fullest_weights(case: Case) -> Weights:
    """Return the weights of the pipeline rank that has most, before ZeRO divides them."""
    first, middle, last = (_layers_of(case, rank) for rank in ("first", "middle", "last"))
    first = first.with_dense(local_embedding(case) + np.where(case.pp == 1, local_output(case), 0))
    last = last.with_dense(np.where(case.pp > 1, local_output(case), 0))
    most = np.maximum(np.maximum(first.total, last.total), middle.total)
    is_first, is_last = first.total >= most, last.total >= most
    experts = np.where(is_first, first.experts, np.where(is_last, last.experts, middle.experts))
    return Weights(most - experts, experts)


def _layers_of(case: Case, rank: str) -> Weights:
    """Return the weights of all layers of a pipeline rank. rank: first, middle or last."""
    layers, of = case.held("weights", rank), case.of_rank(rank)
    return Weights(layers * local_dense(of), layers * local_experts(of))


def updated_weights(case: Case) -> Values:
    """Return the weights that the fullest rank updates: ZeRO divides them over the data and context ranks.

    Hybrid sharding divides them over those of a group; experts are divided over the ranks that hold the same ones.
    """
    weights, sharded = fullest_weights(case), case.zero >= 1
    dense = weights.dense / np.where(sharded, case.sharded_over, 1.0)
    return dense + weights.experts / np.where(sharded, case.experts_sharded_over, 1.0)


def bytes_per_weight(case: Case) -> dict[str, Values]:
    """Return the bytes that a weight has on devices by category, nothing divided: each a value or an array (cases,).

    Mixed precision keeps weights in 16 bits beside a master copy and two moments (Rajbhandari et al. 2020, section
    3.1); in fp16 a gradient is converted to the precision of the master copy before the update. paralab itself keeps
    weights in the precision of the states, and casts them for each pass.
    """
    moments = np.where((case.optimizer == "sgd") | (case.optimizer == "lion"), 1, 2)
    moment_bytes = np.where(case.optimizer == eight_bits.NAME, eight_bits.BYTES, case.state_bytes)
    here, converts = np.where(case.updates_on_host, 0, 1), np.where(case.is_own, 0, 1)
    return {
        "weights": np.where(case.is_own, case.state_bytes, case.element_bytes),
        "gradients": case.gradient_bytes,
        "master weights": np.where((case.precision == "fp32") | case.is_own, 0, case.state_bytes) * here,
        "moments": moments * moment_bytes * here,
        "converted gradients": np.where(case.precision == "fp16", case.state_bytes, 0) * converts * here,
    }


def state_bytes(plan: Plan, weights: Weights) -> Values:
    """Return the bytes of weights, gradients and optimizer states on a rank.

    weights: that it holds before ZeRO divides them. Mixed precision keeps weights in 16 bits beside a master copy and
    two moments (Rajbhandari et al. 2020, section 3.1); in fp16 a gradient is converted to the precision of the master
    copy before the update (20 bytes a weight in Megatron-LM). FSDP keeps only what is divided, and gathers in 16 bits.
    """
    case = plan.case
    dense = weights.dense * _bytes_of_one(case, np.maximum(case.sharded_over, 1))
    return dense + weights.experts * _bytes_of_one(case, case.experts_sharded_over)


def _bytes_of_one(case: Case, divided: Values) -> Values:
    """Return the bytes of states that a rank has for each of its weights. divided: ranks that ZeRO divides it over."""
    each = bytes_per_weight(case)
    working, moments = each["weights"], each["moments"]
    optimizer = each["master weights"] + moments + each["converted gradients"]
    again = np.where(case.is_deepspeed & (case.zero == 1), case.gradient_bytes, 0)
    plain = (
        working
        + case.gradient_bytes / np.where((case.zero >= 2) & np.logical_not(keeps_whole(case)), divided, 1)
        + optimizer / np.where(case.zero >= 1, divided, 1)
        + again
    )
    sharded = np.maximum(case.state_bytes, working) * (1 + moments / case.state_bytes)
    sharded = (sharded + np.where(keeps_whole(case), 0, case.gradient_bytes)) / divided
    deepspeed = (working + case.gradient_bytes + optimizer) / divided
    third = np.where(case.is_deepspeed, deepspeed, np.where(case.offload == "parameters", 0.0, sharded))
    return np.where((case.zero == 3) | (case.is_own & (case.zero == 2)), third, plain)


def gradient_bytes(case: Case, weights: Weights) -> Values:
    """Return the bytes of gradients that `state_bytes` has of a rank of paralab's own. weights: as there."""
    sharded = (case.zero >= 2) & np.logical_not(keeps_whole(case))
    dense = weights.dense / np.where(sharded, np.maximum(case.sharded_over, 1), 1.0)
    experts = weights.experts / np.where(sharded, case.experts_sharded_over, 1.0)
    elsewhere = ((case.zero >= 2) & keeps_whole(case)) | (case.offload == "parameters")
    return np.where(elsewhere, 0.0, (dense + experts) * case.gradient_bytes)


def gathered_bytes(plan: Plan, layer: Values, ends: Values, every: Values, layers: Values) -> Values:
    """Return the bytes of what ZeRO has whole at once.

    layer, every, ends: weights of the largest layer, of all layers and of the largest end. layers: how many there are.

    Two layers with their gradients, or an end, of which stage 2 has the weights anyway; a pipeline of PyTorch keeps
    all layers of the rank, with whole gradients. paralab itself has both stages from FSDP, which keeps the ends beside
    the layer at work, and in stage 2 all layers.
    """
    case = plan.case
    some = np.maximum(np.minimum(layers, 2) * layer, ends)
    own = case.gradient_bytes * (1 - 1 / np.maximum(case.sharded_over, 1))  # beside the rank's shard of the gradients
    third = np.where(keeps_whole(case), (every + ends) * case.gradient_bytes, some * own)
    third = third + np.where(keeps_whole(case), every + ends, some) * case.element_bytes
    second = np.where(by_micro_batch(case), some * own, 0.0)
    of_run = np.where(case.zero == 2, every, np.minimum(layers, 1) * layer) + ends
    third = np.where(case.is_own & np.logical_not(keeps_whole(case)), of_run * case.element_bytes, third)
    second = np.where(case.is_own, third, second)
    return np.select([case.zero == 3, case.zero == 2], [third, second], 0.0)


def buffer_bytes(plan: Plan) -> Values:
    """Return the bytes of the buckets that gradients are reduced in."""
    case, k = plan.case, plan.constants
    gradients = fullest_weights(case).total * case.gradient_bytes  # no bucket of PyTorch is larger than what it is for
    buckets = np.minimum(k.mem_buckets_bytes, gradients)
    buckets = np.where(case.is_deepspeed & (case.zero > 0), k.mem_deepspeed_buckets_bytes, buckets)
    return np.where((case.dp * case.cp > 1) & np.logical_not(case.is_own), buckets, 0.0)
