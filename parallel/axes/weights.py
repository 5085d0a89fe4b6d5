"""How many weights a model has, and what a pipeline rank holds of them. Values or arrays (cases,)."""

import numpy as np

from paralab.axes.case import Case, CountedCase, Values


def attention_weights(case: Case) -> Values:
    """Return the weights of the four projections of attention in a layer."""
    return case.hidden * case.head_dim * 2 * (case.heads + case.kv_heads)


def mlp_weights(case: Case) -> Values:
    """Return the weights of the MLPs of a layer that every token meets: dense ones, and shared experts."""
    return np.where(case.gated, 3, 2) * case.hidden * case.dense_width


def expert_weights(case: Case) -> Values:
    """Return the weights of one expert of a layer; where not all layers have experts, in the mean of them."""
    each = case.mixture_share * np.where(case.gated, 3, 2) * case.hidden * case.expert_ffn
    return np.where(case.is_mixture, each, 0)


def small_weights(case: Case) -> Values:
    """Return the weights of a layer that no axis but the data axis divides: norms, biases of the output, the router."""
    norms = np.where(case.norm == "layernorm", 4, 2) * case.hidden
    return norms + np.where(case.gated, 0, 2 * case.hidden) + case.hidden * case.experts * case.mixture_share


def layer_weights(case: Case) -> Values:
    """Return the weights of a layer, all experts included."""
    if isinstance(case, CountedCase):
        return case.block_weights
    return attention_weights(case) + mlp_weights(case) + case.experts * expert_weights(case) + small_weights(case)


def embedding_weights(case: Case) -> Values:
    """Return the weights of the token embedding, and of learned positions."""
    if isinstance(case, CountedCase):
        return case.first_weights
    return case.vocab * case.hidden + np.where(case.position == "learned", case.sequence_length * case.hidden, 0)


def all_weights(case: Case) -> Values:
    """Return the weights of the model: a tied output layer counts once."""
    if isinstance(case, CountedCase):
        return case.layers * case.block_weights + case.first_weights + case.last_weights
    untied = np.where(case.tied_embeddings, 0, case.vocab * case.hidden)
    return case.layers * layer_weights(case) + embedding_weights(case) + untied


def active_weights(case: Case) -> Values:
    """Return the weights that a token meets, both embeddings included: of a mixture, those of the experts in use."""
    if isinstance(case, CountedCase):
        return all_weights(case)
    idle = case.layers * (case.experts - case.experts_per_token) * expert_weights(case)
    return all_weights(case) - np.where(case.is_mixture, idle, 0)


def local_dense(case: Case) -> Values:
    """Return the weights of a layer that a tensor rank holds, without experts."""
    if isinstance(case, CountedCase):
        return case.block_weights - case.block_divided_weights * (1 - 1 / case.tp)
    return (attention_weights(case) + mlp_weights(case)) / case.tp + small_weights(case)


def local_experts(case: Case) -> Values:
    """Return the expert weights of a layer that a rank holds.

    Whole experts are divided over the expert ranks, and each over `expert_tensor_ranks`.
    """
    if isinstance(case, CountedCase):
        return 0.0
    return case.experts * expert_weights(case) / (case.ep * case.expert_tensor_ranks)


def local_embedding(case: Case) -> Values:
    """Return the weights of the token embedding on a tensor rank."""
    if isinstance(case, CountedCase):
        return case.first_weights
    return embedding_weights(case) / case.tp


def local_output(case: Case) -> Values:
    """Return the weights of the output layer on a tensor rank; of a tied one on a single pipeline rank, none."""
    if isinstance(case, CountedCase):
        return case.last_weights
    return np.where(case.tied_embeddings & (case.pp == 1), 0, case.vocab * case.hidden / case.tp)
