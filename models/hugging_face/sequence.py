"""Sequences of a model of transformers that ranks share: its attention becomes `Attend`, by their registry of those.

A model that attends in another way than all earlier positions alike (windows, soft caps, biases) is not shared, and
neither is one that mixes positions elsewhere: `paralab.models.hugging_face.proof` tries.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from paralab.models.hugging_face.config import CausalLMConfig, quietly
from paralab.models.hugging_face.thread_ranks import ThreadRanks
from paralab.models.sequence import Attend, SequenceShape, Whole, take_all

_NAME = "paralab"  # in their registry
_OTHERWISE = ("sliding_window", "softcap", "s_aux", "position_bias")  # what their interface passes on beside the mask


def shape_of(config: CausalLMConfig) -> SequenceShape | None:
    """Return what divides where ranks share a sequence; None for a configuration that has no heads."""
    heads = getattr(config.theirs, "num_attention_heads", None)
    if not isinstance(heads, int):
        return None
    kv_heads = getattr(config.theirs, "num_key_value_heads", None) or heads
    return SequenceShape(config.seq_len, heads, kv_heads, causal=True)


def sharing(model: Any) -> None:
    """Give a model the attributes of `paralab.models.sequence.Sequence`: it has all positions until it is told."""
    model.ranks, model.take = 1, take_all
    model.share_sequence = MethodType(_share, model)  # a method, so that a copy of the model tells its own


def own_positions(model: Any, x: Tensor) -> Tensor:
    """Return the positions (1, seq) int64 of x (batch, seq, ...), which this rank has."""
    return model.take(torch.arange(x.shape[1] * model.ranks, device=x.device), 0)[None]


def _share(self: Any, take: Callable[[Tensor, int], Tensor], ranks: int) -> None:
    """Have a model compute the positions that `take` takes, and attend by modules that an axis can replace."""
    from transformers import AttentionInterface

    self.take, self.ranks = take, ranks
    for module in list(self.modules()):
        if hasattr(module, "is_causal") and not isinstance(module, Attend):
            queries, width = getattr(module, "num_key_value_groups", 1), getattr(module, "v_head_dim", None)
            module.attend = Attend(causal=True, queries=queries, value_width=width)  # a width in latent attention alone
    if _NAME not in AttentionInterface._global_mapping:
        AttentionInterface.register(_NAME, _attend)  # and no mask of this name: every mask is that of a causal model
    with quietly():
        self.set_attn_implementation(_NAME)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **named: Any,
) -> tuple[Tensor, None]:
    """Return attention (batch, seq, heads, head_dim) of tensors (batch, heads, seq, head_dim): their interface.

    Raises: NotImplementedError for attention that is not the usual one.
    """
    odd = [name for name in _OTHERWISE if named.get(name) is not None]
    if odd or attention_mask is not None:
        raise NotImplementedError(f"its attention has {odd[0] if odd else 'a mask'}")
    if value.shape[-1] != (module.attend.value_width or key.shape[-1]):
        raise NotImplementedError(f"its keys have {key.shape[-1]} elements a head and its values {value.shape[-1]}")
    usual = query.shape[-1] ** -0.5
    if scaling is not None and scaling != usual:
        query = query * (scaling / usual)
    return module.attend(query, key, value).transpose(1, 2).contiguous(), None


class SequenceRanks(ThreadRanks):
    """Ranks that share the sequences of a model, each with one piece. No gradients."""

    def __init__(self, size: int) -> None:
        super().__init__(size, {})

    def _split(self, model: Any, rank: int) -> nn.Module:
        model.share_sequence(lambda x, dim: x.chunk(self.size, dim)[rank], self.size)
        for module in model.modules():
            if isinstance(module, Attend):
                module.over = lambda q, k, v: self._over(q, k, v, rank)
            if isinstance(module, Whole):
                module.over = lambda x: torch.cat(self._meet(x, rank), dim=1)
        return model

    def _over(self, q: Tensor, k: Tensor, v: Tensor, rank: int) -> Tensor:
        pairs = self._meet(torch.cat((k, v), dim=3), rank)
        every = torch.cat([x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in pairs], dim=2)
        keys, values = every.split([k.shape[3], v.shape[3]], dim=3)
        length = q.shape[2]
        ahead = torch.ones(length, length * self.size, dtype=torch.bool).triu(1 + rank * length)
        scores = (q @ keys.mT * q.shape[-1] ** -0.5).masked_fill(ahead, float("-inf"))
        return scores.softmax(-1) @ values
