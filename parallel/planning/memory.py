"""Bytes that a training needs on its fullest device. Values or arrays (cases,).

States, activations of the micro-batches in flight (Korthikanti et al. 2022, section 4), the logits of the last stage,
what is gathered or reduced at a time, and what the allocator and the driver add.
"""

import numpy as np

from paralab.axes.case import Case, CountedCase, Values
from paralab.axes.costs import Constants, Plan
from paralab.axes.data.cost import Weights, buffer_bytes, gathered_bytes, gradient_bytes, state_bytes
from paralab.axes.pipeline.cost import in_flight, is_v_shaped, waiting
from paralab.axes.weights import local_dense, local_embedding, local_experts, local_output
from paralab.models.vocabulary import CHUNK_BYTES


def peak_bytes(plan: Plan) -> Values:
    """Return the bytes of the fullest device, in the sense of the case's memory_kind."""
    case, allocated = plan.case, allocated_bytes(plan)
    kinds = [case.memory_kind == "allocated", case.memory_kind == "reserved"]
    return np.select(kinds, [allocated, reserved_bytes(plan, allocated)], default=device_bytes(plan, allocated))


def safe_bytes(plan: Plan) -> Values:
    """Return the bytes of the fullest device on the safe side, to say whether a training fits.

    Software with scores in memory is given the logits of PyTorch's own loss: trainings with it have run out of memory
    that were measured with much less on other ranks.
    """
    old = plan.case.keeps_scores
    safe = plan.constants.but({"mem_logit_bytes_fused": np.where(old, plan.constants.mem_logit_bytes, 0)})
    more = np.where(old, allocated_bytes(Plan(plan.case, plan.machine, safe)), 0)
    return device_bytes(plan, np.maximum(allocated_bytes(plan), more))


def allocated_bytes(plan: Plan) -> Values:
    """Return the bytes that are allocated on the fullest device at its fullest moment."""
    first, between, last = (sum(rank.values()) for rank in by_rank(plan))
    return np.maximum(np.maximum(first, between), last)


def by_rank(plan: Plan) -> list[dict[str, Values]]:
    """Return the allocated bytes of the first, of the fullest one between and of the last pipeline rank, each in parts.

    states: parameters, gradients and optimizer states. activations: kept for backward. at work: logits or the layer
    that runs, what is gathered, and buffers. Those of a rank that is not there are 0.
    """
    case, output = plan.case, local_output(plan.case)
    ends = local_embedding(case) + np.where(case.pp == 1, output, 0)
    both, loss = is_v_shaped(case) | (case.pp == 1), logit_bytes(plan)
    ranks = (
        ("first", 1.0, 0, ends, np.where(both, loss, 0.0)),
        ("held", np.where(case.pp > 2, 1.0, 0.0), case.held_rank, 0.0, 0.0),
        ("last", np.where(case.pp > 1, 1.0, 0.0), case.pp - 1, output, np.where(both, 0.0, loss)),
    )
    return [
        {part: size * there for part, size in _rank_bytes(plan.of_rank(name), name, number, ends, loss).items()}
        for name, there, number, ends, loss in ranks
    ]


def _rank_bytes(plan: Plan, name: str, rank: Values, ends: Values, loss: Values) -> dict[str, Values]:
    """Return the allocated bytes of a pipeline rank. ends: weights of embedding and output. loss: bytes of its logits.

    name: first, held or last, as the fields layers_* have it. rank: its number.

    Either the logits or the working set of one layer is there at the fullest moment, on top of what is kept.
    """
    case = plan.case
    layers, largest = case.held("weights", name), plan.of_largest_layer()
    weights = Weights(layers * local_dense(case) + ends, layers * local_experts(case))
    layer = local_dense(largest.case) + local_experts(largest.case)
    states, kept = state_bytes(plan, weights), rank_kept_bytes(plan, name, rank)
    gathered = gathered_bytes(plan, layer, ends, weights.total - ends, layers) + buffer_bytes(plan)
    at_work = np.maximum(loss, working_bytes(largest)) + gathered
    if not np.any(case.is_own):
        return {"states": states, "activations": kept, "at work": at_work}
    return _of_run(plan, weights, ends, {"states": states, "activations": kept, "at work": at_work}, gathered)


def _of_run(
    plan: Plan, weights: Weights, ends: Values, backward: dict[str, Values], gathered: Values
) -> dict[str, Values]:
    """Return the parts of a rank as `paralab run` has them. backward: with all gradients, when its first one begins.

    ends: weights of the ends. gathered: bytes. Gradients are there from the first micro-batch's backward pass on, and
    under DistributedDataParallel always. So where none began before, the fullest moment is either before them, or with
    them when its own activations are gone. A pipeline keeps room for all that its micro-batches receive.
    """
    case = plan.case
    own, piped = case.is_own, case.pp > 1
    divided = case.dp * case.tp * case.pp * case.cp * case.ep > case.dp
    wraps = own & (case.zero < 2) & (case.dp > 1) & np.logical_not(divided)
    first_only = (case.micro_batches == 1) | (case.schedule == "gpipe")
    none_yet = own & first_only & np.logical_not(wraps)
    twice = wraps & (case.micro_batches > 1)  # in buckets, and those that earlier micro-batches added up
    gradients = gradient_bytes(case, weights)
    whole = np.where(piped & (case.zero >= 2), weights.total * case.gradient_bytes, 0.0)  # which are among `gathered`
    neighbours = np.where(piped, 2 * case.vpp - np.where(ends > 0, 1, 0), 0)
    received = neighbours * case.micro_batches * case.tokens * case.hidden * case.state_bytes
    # a new gradient of an end, and where both ends of a pipeline are one what they add
    new = case.gradient_bytes * np.where(piped & case.tied_embeddings & (case.zero < 2), 3, 1)
    others = np.where(none_yet, 1 - 1 / case.micro_batches, 0.0)  # of the micro-batches, which wait behind the first
    losses, next_one = backward["at work"] - gathered, np.where(others > 0, working_bytes(plan), 0.0)
    moments = (
        {
            "states": backward["states"] - np.where(none_yet, gradients, 0.0) + np.where(twice, gradients, 0.0),
            "activations": backward["activations"],
            "at work": backward["at work"] + np.where(own, received, 0.0) - np.where(none_yet, whole, 0.0),
        },
        {
            "states": backward["states"],
            "activations": others * backward["activations"],
            "at work": np.maximum(np.maximum(others * losses, next_one), ends * new) + gathered + received,
        },
    )
    later = own & (sum(moments[1].values()) > sum(moments[0].values()))
    return {part: np.where(later, moments[1][part], size) for part, size in moments[0].items()}


def rank_kept_bytes(plan: Plan, name: str, rank: Values) -> Values:
    """Return the bytes that a pipeline rank keeps for backward at its fullest moment. name, rank: as above."""
    case = plan.case
    layers = case.held("kept", name)
    kept = in_flight(case, rank) * (layers * kept_bytes(plan) + end_bytes(plan, name))
    return kept + waiting(case, rank) * layers * waiting_bytes(plan)


def waiting_bytes(plan: Plan) -> Values:
    """Return the bytes that a layer keeps more of a micro-batch from one half of its backward pass to the other.

    The gradients of weights need those of the results of products; activations that were recomputed are there again.
    PyTorch has these gradients beside all that the first half needed; where software frees that between the halves,
    they are no more than it was (Qi et al. 2023, section 3 and table 1).
    """
    case = plan.case
    if isinstance(case, CountedCase):
        return case.element_bytes * case.micro_batch_size * case.block_kept * case.kept_share / 2
    heads = (case.heads + 2 * case.kv_heads) * case.head_dim
    results = (heads + case.inner_width * np.where(case.gated, 2, 1)) / case.tp + 4 * case.hidden
    again = layer_bytes(plan, scores=case.keeps_scores) + cast_bytes(case) - kept_bytes(plan)
    by_torch = case.is_own | (case.framework == "torchtitan") | (case.framework == "")
    results = np.where(by_torch, results, 0.0)
    return np.maximum(again, 0.0) + case.element_bytes * case.tokens * results


def kept_bytes(plan: Plan) -> Values:
    """Return the bytes that a layer keeps of one micro-batch on the device until its backward pass."""
    case = plan.case
    return np.where(case.offload == "activations", cast_bytes(case), _backward_bytes(plan))


def on_host_bytes(plan: Plan) -> Values:
    """Return the bytes that a layer keeps of one micro-batch in the memory of the host, its weights among them."""
    case = plan.case
    if not np.any(case.offload == "activations"):
        return 0.0
    weights = np.where(case.zero >= 2, case.element_bytes * (local_dense(case) + local_experts(case)), 0.0)
    return np.where(case.offload == "activations", _backward_bytes(plan) + weights, 0.0)


def _backward_bytes(plan: Plan) -> Values:
    """Return the bytes that the backward pass of a layer needs of one micro-batch."""
    case = plan.case
    full, selective = case.recompute == "full", case.recompute == "selective"
    if isinstance(case, CountedCase):
        each, fsdp = case.element_bytes * case.micro_batch_size, case.is_own & (case.zero >= 2)
        kept = each * case.block_kept * case.kept_share * np.where(fsdp, case.cast_kept_share, 1.0)
        boundary = each * case.block_boundary * np.where(fsdp, case.cast_boundary_share, 1.0)
        return np.where(full, boundary, kept + cast_bytes(case))
    per_operator = selective & (case.framework == "torchtitan")
    whole = layer_bytes(plan, scores=case.keeps_scores & np.logical_not(selective)) + cast_bytes(case)
    some = np.where(per_operator, _operator_bytes(plan), whole)
    boundary = np.where(case.is_own, case.state_bytes, case.element_bytes) * case.tokens * case.hidden
    return np.where(full, boundary * case.sequence_share, some)


def cast_bytes(case: Case) -> Values:
    """Return the bytes of a layer's weights as autocast has cast them for one micro-batch, which keeps them."""
    casts = case.is_own & (case.element_bytes < case.state_bytes) & (case.zero < 2)
    return np.where(casts, case.element_bytes * (local_dense(case) + local_experts(case)), 0.0)


def end_bytes(plan: Plan, name: str) -> Values:
    """Return the bytes of a micro-batch that what is before the blocks keeps. name: of the rank.

    That of a transformer is an embedding, which keeps next to nothing.
    """
    case = plan.case
    if isinstance(case, CountedCase) and name == "first":
        return case.element_bytes * case.micro_batch_size * case.first_kept
    return 0.0


def layer_bytes(plan: Plan, scores: Values) -> Values:
    """Return the bytes of all activations of a layer that backward needs. scores: whether those of attention count."""
    case, k = plan.case, plan.constants
    wide = case.element_bytes / 2  # figures are of 16 bits
    dropout = np.where(case.keeps_scores, 2, 0)  # masks, in software that trains with dropout
    fuses = case.compile | case.fused_norm
    norm = np.where((case.norm == "rmsnorm") & np.logical_not(fuses), 2 * k.mem_eager_norm_bytes, 0.0)
    rotary = np.where((case.position == "rotary") & np.logical_not(fuses), k.mem_eager_rotary_bytes, 0.0)
    rotary = np.where(case.is_own & (rotary > 0), case.element_bytes, rotary)
    # inputs of both norms are divided; those of the products behind them only where Megatron gathers them once more
    gathered = np.where(is_megatron(case), case.sequence_share, 1.0)
    norms = np.where(case.is_own, np.where(norm > 0, 16, 8), 4 * wide + norm)  # of paralab's, in fp32
    along_hidden = (norms + dropout) * case.sequence_share + 4 * wide * gathered
    heads = (case.heads + case.kv_heads) * case.head_dim * rotary
    heads = heads + case.element_bytes * (2 * case.heads + 2 * case.kv_heads) * case.head_dim
    taken = case.is_own & (rotary > 0) & (case.kv_heads < case.heads)  # queries are taken apart from keys by a copy
    heads = heads + np.where(taken, case.element_bytes * case.heads * case.head_dim, 0.0)
    per_ffn = np.where(case.gated, np.where(fuses, 6, 8), 4)
    inner = case.inner_width * per_ffn * wide + 2 * case.element_bytes * case.routed_copies * case.hidden
    score = np.where(scores, score_bytes(case), 0.0)
    return case.tokens * (case.hidden * along_hidden + (heads + inner) / case.tp + score)


def score_bytes(case: Case) -> Values:
    """Return the bytes of a token's scores in a layer: those that are written to memory, and a mask of one byte."""
    each = np.where(case.attention == "eager", 3, 2) * case.element_bytes + 1
    return each * case.heads * case.sequence_length / case.tp


def _operator_bytes(plan: Plan) -> Values:
    """torchtitan's selective policy: every second matrix product, the attention output and the input of the layer."""
    case = plan.case
    products = (2 * case.heads + 2 * case.kv_heads) * case.head_dim / case.tp * 0.5 + case.inner_width * 2 / case.tp
    products = products + 2 * case.hidden * case.sequence_share
    saved = case.element_bytes * (
        0.5 * products + case.heads * case.head_dim / case.tp + case.hidden * case.sequence_share
    )
    return case.tokens * saved


def working_bytes(plan: Plan) -> Values:
    """Return the bytes that the layer at work has beside what is kept: its activations again, and their gradients."""
    case, k = plan.case, plan.constants
    if isinstance(case, CountedCase):
        again = np.where(case.recompute == "full", case.block_kept * case.kept_share, 0.0)
        return case.element_bytes * case.micro_batch_size * (again + 2 * case.block_boundary * k.mem_working_share)
    whole = (case.recompute == "full") | ((case.recompute == "selective") & (case.framework == "torchtitan"))
    core = np.where((case.recompute == "selective") & case.keeps_scores, case.tokens * score_bytes(case), 0.0)
    again = np.where(whole, layer_bytes(plan, scores=case.keeps_scores), core)
    width = 2 * case.hidden + np.where(case.gated, 2, 1) * case.inner_width / case.tp
    return again + case.tokens * case.element_bytes * width * k.mem_working_share


def logit_bytes(plan: Plan) -> Values:
    """Return the bytes of the logits and the loss of a micro-batch."""
    case, k = plan.case, plan.constants
    if isinstance(case, CountedCase):
        return case.element_bytes * case.micro_batch_size * case.last_kept
    own = is_megatron(case) | (case.framework == "megatron-deepspeed") | (case.framework == "llm-foundry")
    each = np.where(own, k.mem_logit_bytes_fused, k.mem_logit_bytes)
    return np.where(case.is_own, _chunked_loss_bytes(case), case.tokens * case.vocab / case.tp * each)


def _chunked_loss_bytes(case: Case) -> Values:
    """Return the bytes of `paralab.models.cross_entropy`: a chunk of logits, and the gradients of weights and input.

    Products in 16 bits are added up in fp32, and what FSDP has cast is there already. Tensor ranks have the chunk, and
    add up gradients of their input, in fp32 as well. What waits for backward is there once for each micro-batch whose
    backward pass the last stage puts off.
    """
    lower, divided, e = case.element_bytes < 4, case.tp > 1, case.element_bytes
    words, logits = case.vocab * case.hidden / case.tp, case.tokens * case.vocab / case.tp * e
    chunk = np.minimum(logits, CHUNK_BYTES)
    cast = np.where(case.zero < 2, e, 0)
    added = np.where(case.zero < 2, 8, np.where(logits > chunk, 6, 2))  # a cast copy, a product, and it in fp32
    in_16 = np.maximum(np.where(divided, 2, 1) * chunk + words * added, np.where(divided, 4, 1) * chunk + words * cast)
    of_tokens = np.where(lower, 2 * e, e) + np.where(case.norm == "rmsnorm", 8, 4) + np.where(divided, 4, 0)
    waits = (in_flight(case, case.pp - 1) - 1) * 4 * (words + case.tokens * case.hidden)
    return np.where(lower, in_16, chunk + words * 4) + case.tokens * case.hidden * of_tokens + waits


def is_megatron(case: Case) -> Values:
    """Return whether Megatron's own layers and cross entropy run, and not PyTorch's."""
    return (case.framework == "megatron-lm") | (case.framework == "megatron-core")


def reserved_bytes(plan: Plan, allocated: Values) -> Values:
    """Return what an allocator of blocks reserves to have that many bytes allocated."""
    return allocated * (1 + plan.constants.mem_fragmentation)


def device_bytes(plan: Plan, allocated: Values) -> Values:
    """Return what is in use on a device: reserved memory, the context, and buffers of each kind of group."""
    case = plan.case
    groups = 1.0 * (case.dp > 1) + (case.tp > 1) + (case.pp > 1) + (case.cp > 1)
    return in_use_bytes(allocated, groups, plan.constants)


def in_use_bytes(allocated: Values, groups: Values, constants: Constants) -> Values:
    """Return the same, of a device whose rank is in process groups of so many axes."""
    k = constants
    return allocated * (1 + k.mem_fragmentation) + k.mem_context_bytes + groups * k.mem_communicator_bytes
