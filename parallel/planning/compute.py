"""Seconds of a layer and of the ends of the model on the device, without communication. Values or arrays (cases,).

A layer is matrix products, the attention core, and element-wise operations whose time is the bytes that they move.
"""

import numpy as np

from paralab.axes.case import Case, CountedCase, Values
from paralab.axes.context_parallel.cost import is_ring
from paralab.axes.costs import Machine, Pass, Plan, smooth_max
from paralab.axes.data.cost import bytes_per_weight
from paralab.axes.weights import attention_weights, expert_weights, local_dense, local_experts, mlp_weights

ARCHITECTURES = ("Volta", "Turing", "Ampere", "Ada", "Hopper", "Blackwell", "CDNA2", "CDNA3", "TPU")
# Bytes of a weight that an update passes: its gradient (clipped, then read) and the 16 bits that are written, and the
# states that are read and written, of which Adam in fp32 has the weight and two moments
UPDATE_BYTES, ADAM_BYTES = 10, 12
REFERENCE_HEAD = 128.0  # elements of a head, where the share of flash attention is stated


def layer(plan: Plan) -> Pass:
    """Return the seconds of one layer in one micro-batch, a recomputed forward pass included in backward."""
    case = plan.case
    full, selective = 1.0 * (case.recompute == "full"), 1.0 * (case.recompute == "selective")
    per_operator = selective * (case.framework == "torchtitan")  # its policy keeps every second product
    return (
        products(plan).again(full + 0.5 * per_operator)
        + attention(plan).again(full + selective - per_operator)
        + elementwise(plan).again(full + per_operator)
    )


# --- matrix products


def products(plan: Plan) -> Pass:
    """Return the seconds of the matrix products of a layer: two more in backward for each in forward."""
    case = plan.case
    dense, experts = _product_flops(plan) if not isinstance(case, CountedCase) else (_counted_flops(case), 0.0)
    seconds = (dense + experts / _grouped_speed(plan)) / product_rate(plan)
    read_s = case.element_bytes * (local_dense(case) + local_experts(case)) / memory_rate(plan)
    forward_s = smooth_max(seconds, read_s, 4) + _cast_bytes(plan) / memory_rate(plan)
    return Pass(forward_s, 2 * forward_s)


def _product_flops(plan: Plan) -> tuple[Values, Values]:
    """Return the FLOPs of dense products and of those of experts, with what the edges of narrow ones waste.

    A product of n columns takes as long as one of n + half_speed_width that wastes nothing.
    """
    case, width = plan.case, plan.constants.half_speed_width
    per_mlp = np.where(case.gated, 3, 2)
    shared = case.mixture_share * (case.shared_ffn > 0)
    mlps = np.where(case.is_mixture, 1 - case.mixture_share + shared, 1)  # dense ones of a layer
    weights = (attention_weights(case) + mlp_weights(case)) / case.tp + (2 + per_mlp * mlps) * case.hidden * width
    edges = (1 + width / case.hidden) * (1 + width / case.tokens)
    experts = case.experts_per_token * expert_weights(case) / case.tp
    return 2 * case.tokens * weights * edges, 2 * case.tokens * experts


def _counted_flops(case: CountedCase) -> Values:
    return case.micro_batch_size * case.block_flops * case.divided_share


def _grouped_speed(plan: Plan) -> Values:
    """Return the speed of products of experts compared with dense ones: few tokens an expert waste most of a tile."""
    case, k = plan.case, plan.constants
    ranks = case.ep * case.expert_tensor_ranks / case.tp
    each = np.maximum(case.tokens * case.experts_per_token * ranks / np.maximum(case.experts, 1), 1)
    return k.grouped_share * each / (each + k.half_speed_expert_tokens)


def _cast_bytes(plan: Plan) -> Values:
    """Return the bytes of bringing the inputs of a layer's products into 8 or 4 bits.

    Those that sequence parallelism divides are cast before they are gathered.
    """
    case, k = plan.case, plan.constants
    wide = case.hidden * 2 * case.sequence_share + (case.heads * case.head_dim + case.inner_width) / case.tp
    return np.where(case.is_narrow, k.cast_bytes * case.tokens * wide, 0.0)


def product_rate(plan: Plan) -> Values:
    """Return the FLOPs per second of matrix products of layers, all day and in any model.

    Sizes that 64 does not divide slow them down.
    """
    case, k = plan.case, plan.constants
    half = half_share(plan.machine, plan)
    kinds = [case.precision == name for name in ("fp32", "fp8", "nvfp4")]
    share = np.select(kinds, [k.share_fp32, half * k.fp8_share, half * k.fp4_share], half)
    return plan.machine.peak_flops * share * np.where((case.hidden % 64 == 0) | case.is_counted, 1.0, k.ragged_share)


def wide_rate(plan: Plan) -> Values:
    """Return the same of products that are never in 8 or 4 bits, but in 16 or in fp32."""
    case, machine = plan.case, plan.machine
    in_half = machine.half_flops * half_share(machine, plan)
    return np.where(case.precision == "fp32", machine.peak_flops * plan.constants.share_fp32, in_half)


def half_share(machine: Machine, plan: Plan) -> Values:
    """Return the share of the 16-bit peak that a device sustains in large products.

    Devices of one generation differ by the watts they have for a FLOP.
    """
    k = plan.constants
    shares = np.select(
        [machine.arch == name for name in ARCHITECTURES],
        [getattr(k, f"share_{name.lower()}") for name in ARCHITECTURES],
        default=k.share_unknown,
    )
    return np.minimum(shares * machine.watts_ratio**k.watts_power, 0.95)


# --- the attention core


def attention(plan: Plan) -> Pass:
    """Return the seconds of the attention core of a layer: scores kept in memory, or a flash kernel."""
    case = plan.case
    if isinstance(case, CountedCase):
        return Pass()  # among the products
    eager, flash = _scores(plan), _flash(plan)
    return Pass(
        np.where(case.keeps_scores, eager.forward_s, flash.forward_s),
        np.where(case.keeps_scores, eager.backward_s, flash.backward_s),
    )


def _scores(plan: Plan) -> Pass:
    """Two products over all pairs of tokens, and reading and writing each score several times."""
    case, k = plan.case, plan.constants
    flops = attention_flops(case)
    scores = case.tokens * case.sequence_length * case.heads / case.tp
    bytes_ = scores * np.where(case.attention == "eager", k.eager_score_bytes, k.fused_score_bytes) * wideness(case)
    product_s = flops / (wide_rate(plan) * k.score_product_share)
    traffic_s = bytes_ / memory_rate(plan)
    return Pass(product_s + traffic_s, 2 * product_s + k.score_backward * traffic_s)


def _flash(plan: Plan) -> Pass:
    """Half the pairs (the causal mask); backward computes the scores once more: five products for two.

    In fp32 the products are those of CUDA cores, which kernels of every generation keep as busy as older tensor cores.
    Since Hopper Transformer Engine, which Megatron-Core runs, takes cuDNN's kernel before flash attention 2.
    """
    case, machine, k = plan.case, plan.machine, plan.constants
    in_fp32 = case.precision == "fp32"
    recent = ((machine.arch == "Hopper") | (machine.arch == "Blackwell")) & np.logical_not(in_fp32)
    first, by_cudnn = case.attention == "flash1", case.framework == "megatron-core"
    third = recent & np.logical_not(first) & ((case.attention == "flash3") | by_cudnn)
    second = np.where(machine.arch == "Blackwell", k.flash2_blackwell, k.flash2_hopper)
    second = np.where(recent, second, k.flash2_share)
    share = np.select([first, third], [second * k.flash1_share / k.flash2_share, k.flash3_share], second)
    met = case.sequence_length / np.where(is_ring(case), case.cp, 1)  # by the queries of a rank in a round
    length = met / (met + k.half_speed_tokens)
    head = (np.minimum(case.head_dim, REFERENCE_HEAD) / REFERENCE_HEAD) ** k.flash_head_power
    peak = np.where(in_fp32, machine.peak_flops, machine.half_flops * machine.watts_ratio**k.watts_power)
    forward_s = attention_flops(case) / 2 / (peak * share * length * head)
    return Pass(forward_s, 2.5 * forward_s / np.where(third, k.flash3_backward_share, k.flash_backward_share))


def attention_flops(case: Case) -> Values:
    """Return the FLOPs of forward attention over all pairs of tokens, on one rank in one micro-batch."""
    return 4 * case.tokens * case.sequence_length * case.heads * case.head_dim / case.tp


# --- what is bound by memory


def memory_rate(plan: Plan) -> Values:
    """Return the bytes per second that element-wise operations reach: the faster the memory, the less of it."""
    k, arch = plan.constants, plan.machine.arch
    fast = (arch == "Hopper") | (arch == "Blackwell") | (arch == "CDNA3")
    return plan.machine.memory_bytes_per_s * np.where(fast, k.memory_share_hbm3, k.memory_share)


def elementwise(plan: Plan) -> Pass:
    """Return the seconds of all operations of a layer that only move bytes."""
    case, k = plan.case, plan.constants
    if isinstance(case, CountedCase):
        return _traffic(plan, case.block_traffic * case.divided_share)
    fuses = case.is_compiled
    norm = np.where(
        case.fused_norm | fuses, k.norm_bytes, np.where(case.norm == "rmsnorm", k.eager_rmsnorm_bytes, k.norm_bytes)
    )
    along_hidden = 2 * norm + 2 * k.residual_bytes
    rotary = np.where(case.position == "rotary", np.where(fuses, k.rotary_bytes, k.eager_rotary_bytes), 0.0)
    along_heads = (case.heads + case.kv_heads) * case.head_dim * (rotary + k.reshape_bytes)
    gated = np.where(fuses | case.fused_norm, k.swiglu_bytes, k.eager_swiglu_bytes)
    along_ffn = case.inner_width * np.where(case.gated, gated, k.gelu_bytes)
    routed = case.routed_copies * case.hidden * k.routing_bytes / case.tp
    bytes_ = case.tokens * (
        case.hidden * along_hidden * case.sequence_share + (along_heads + along_ffn) / case.tp + routed
    )
    forward_s = bytes_ * wideness(case) / memory_rate(plan)
    return Pass(forward_s, k.elementwise_backward * forward_s)


def wideness(case: Case) -> Values:
    """Return how many times as many bytes an element has as in 16 bits, which constants of traffic are of."""
    return case.element_bytes / 2


def _traffic(plan: Plan, elements: Values) -> Pass:
    """Return the seconds of moving so many elements for each sample of a micro-batch of a model that was counted."""
    forward_s = plan.case.micro_batch_size * elements * plan.case.element_bytes / memory_rate(plan)
    return Pass(forward_s, plan.constants.elementwise_backward * forward_s)


def output(plan: Plan) -> Pass:
    """Return the seconds of the output layer and the loss in one micro-batch."""
    case, k = plan.case, plan.constants
    if isinstance(case, CountedCase):
        return output_product(plan) + _traffic(plan, case.last_traffic)
    logits = case.tokens * case.vocab / case.tp
    fused = case.is_compiled | (case.framework == "llm-foundry") | (case.framework == "megatron-core")
    loss_s = logits * np.where(fused, k.fused_loss_bytes, k.loss_bytes) / memory_rate(plan)
    return output_product(plan) + Pass(loss_s / 3, loss_s * 2 / 3)


def output_product(plan: Plan) -> Pass:
    """Return the seconds of the matrix products of the output layer in one micro-batch."""
    case = plan.case
    if isinstance(case, CountedCase):
        flops = case.micro_batch_size * case.last_flops
    else:
        flops = 2 * case.tokens * case.vocab / case.tp * case.hidden
    seconds = flops / wide_rate(plan)
    return Pass(seconds, 2 * seconds)


def embedding(plan: Plan) -> Pass:
    """Return the seconds of looking up embeddings, and of adding into their gradient, in one micro-batch."""
    case, k = plan.case, plan.constants
    if isinstance(case, CountedCase):
        product_s = case.micro_batch_size * case.first_flops / product_rate(plan)
        return Pass(product_s, 2 * product_s) + _traffic(plan, case.first_traffic)
    bytes_ = k.embedding_bytes * wideness(case)
    forward_s = case.tokens * case.hidden * bytes_ * case.sequence_share / memory_rate(plan)
    # a gradient of the whole table is written
    table_s = case.element_bytes * case.vocab * case.hidden / case.tp / memory_rate(plan)
    return Pass(forward_s, 2 * forward_s + table_s)


def accumulate_s(plan: Plan, weights: Values) -> Values:
    """Return the seconds of adding a micro-batch's gradients to those before it. weights: that a rank holds whole.

    In Megatron-Core the products that make gradients also add them (gradient accumulation fusion).
    """
    case, k = plan.case, plan.constants
    apart = np.where(case.gradient_bytes == 2, k.accumulate_half_bytes, k.accumulate_full_bytes)
    fused = 2 * case.gradient_bytes * k.accumulate_exposed
    bytes_ = np.where(case.framework == "megatron-core", fused, apart)
    return weights * bytes_ / memory_rate(plan)


def optimizer_s(plan: Plan, weights: Values) -> Values:
    """Return the seconds of the update, on the device or on its host. weights: that a rank updates."""
    case, k = plan.case, plan.constants
    states = case.state_bytes + bytes_per_weight(case)["moments"]
    bytes_ = k.optimizer_bytes * (UPDATE_BYTES + 2 * states) / (UPDATE_BYTES + 2 * ADAM_BYTES)
    return weights * np.where(case.updates_on_host, k.host_weight_s, bytes_ / memory_rate(plan))
