"""Generate text with GPT-2, token by token, with a key-value cache: each step computes only the new token."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from paralab.models.gpt2 import GPT2, Attention, Block, GPT2Config


@dataclass(frozen=True)
class Choice:
    """How the next token is drawn. top_k keeps the k likeliest tokens; top_p the fewest whose sum reaches p."""

    greedy: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one token from each row of logits (batch, vocab). Return (batch,) int64."""
        if self.greedy:
            return logits.argmax(-1)
        logits = keep_likely(logits.float() / self.temperature, top_k=self.top_k, top_p=self.top_p)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def keep_likely(logits: Tensor, *, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Return logits (batch, vocab) with -inf for all but the likely tokens.

    top_k comes first, then top_p over what is left of it (nucleus sampling, Holtzman et al. 2020, section 3.1).
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    out = torch.zeros_like(ordered, dtype=torch.bool)
    if top_k is not None:
        out[:, top_k:] = True
    if top_p is not None:
        probabilities = ordered.masked_fill(out, float("-inf")).softmax(-1)
        out |= probabilities.cumsum(-1) - probabilities >= top_p  # what comes before has reached it already
        out[:, 0] = False
    return logits.masked_fill(torch.empty_like(out).scatter_(-1, order, out), float("-inf"))


class Cache:
    """Keys and values of the tokens that a model has seen, for each of its blocks.

    `keys_and_values` is (n_layers, 2, batch, n_heads, seq_len, head_dim), in the dtype and on the device of `like`, a
    tensor of any shape.
    """

    def __init__(self, config: GPT2Config, *, batch_size: int, like: Tensor) -> None:
        shape = (config.n_layers, 2, batch_size, config.n_heads, config.seq_len, config.hidden // config.n_heads)
        self.keys_and_values = like.new_empty(shape)
        self.length = 0  # tokens in it

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self.keys_and_values.shape[-2] - self.length


def next_logits(model: GPT2, tokens: Tensor, cache: Cache) -> Tensor:
    """Feed tokens (batch, new) int64 that follow those in the cache; return the logits after the last, (batch, vocab).

    The tokens join the cache, which must have room for them.
    """
    assert tokens.shape[1] <= cache.room, f"{tokens.shape[1]} tokens do not fit into a cache with room for {cache.room}"
    positions = model.embed.positions.weight[cache.length : cache.length + tokens.shape[1]]
    x = model.embed.tokens(tokens) + positions  # (batch, new, hidden)
    for block, stored in zip(model.blocks.values(), cache.keys_and_values, strict=True):
        assert isinstance(block, Block)
        x = x + _attend(block.attn, block.norm1(x), stored, cache.length)
        x = x + block.mlp(block.norm2(x))
    cache.length += tokens.shape[1]
    return model.head(model.norm(x[:, -1]))


def _attend(attention: Attention, x: Tensor, stored: Tensor, start: int) -> Tensor:
    """Return the attention of x (batch, new, hidden) to itself and to what is stored, where its keys are put."""
    qkv = attention.qkv(x).unflatten(-1, (-1, 3, attention.head_dim)).transpose(1, 2)
    q, *new = qkv.unbind(-2)  # each (batch, heads, new, head_dim)
    end = start + x.shape[1]
    for room, values in zip(stored, new, strict=True):
        room[:, :, start:end] = values
    causal = torch.ones(x.shape[1], end, dtype=torch.bool, device=x.device).tril(start)
    y = F.scaled_dot_product_attention(q, stored[0, :, :, :end], stored[1, :, :, :end], attn_mask=causal)
    return attention.proj(y.transpose(1, 2).flatten(2))


@torch.no_grad()
def generate(
    model: GPT2,
    prompt: Tensor,
    *,
    config: GPT2Config,
    tokens: int,
    choice: Choice,
    generator: torch.Generator | None = None,
    known: int | None = None,
) -> Iterator[Tensor]:
    """Yield the tokens that follow a prompt (batch, any length from 1) int64, each (batch,).

    known: draw among the first so many of the vocabulary; the rest of a padded one stands for nothing.

    When the context is full, the older half is forgotten and the cache made anew: positions are learned, so those
    of the tokens that stay change.
    """
    seen = prompt[:, -config.seq_len :]
    cache, new = Cache(config, batch_size=len(prompt), like=model.embed.tokens.weight), seen
    for _ in range(tokens):
        if new.shape[1] > cache.room:
            cache.length = 0
            new = seen = seen[:, -max(config.seq_len // 2, 1) :]
        token = choice.draw(next_logits(model, new, cache)[:, :known], generator)
        yield token
        new = token[:, None]
        seen = torch.cat([seen, new], dim=1)
