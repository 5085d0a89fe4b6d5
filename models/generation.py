"""Generate text token by token. A model with a key-value cache computes only the new token in each step."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
    """What a model has seen: `length` tokens of at most `seq_len`, and their keys and values in each of its layers."""

    def __init__(self, seq_len: int) -> None:
        self.seq_len, self.length = seq_len, 0
        self._held: dict[nn.Module, Tensor] = {}  # layer -> keys and values (2, batch, heads, seq_len, head_dim)
        self._tokens: Tensor | None = None  # (batch, length), of a model that keeps no keys and values

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self.seq_len - self.length

    def attend(self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention of new tokens to themselves and to those before them, and keep their keys and values.

        q: (batch, heads, new, head_dim). k, v: the same, of as many heads or of fewer that divide them.
        Returns: (batch, heads, new, head_dim).
        """
        if layer not in self._held:
            self._held[layer] = k.new_empty(2, *k.shape[:2], self.seq_len, k.shape[-1])
        end = self.length + k.shape[2]
        self._held[layer][:, :, :, self.length : end] = torch.stack([k, v])
        keys, values = self._held[layer][:, :, :, :end]
        causal = torch.ones(q.shape[2], end, dtype=torch.bool, device=q.device).tril(self.length)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=causal, enable_gqa=True)

    def join(self, tokens: Tensor) -> Tensor:
        """Return the tokens seen before (batch, length) with new ones after them."""
        self._tokens = tokens if self._tokens is None or not self.length else torch.cat([self._tokens, tokens], dim=1)
        return self._tokens


@runtime_checkable
class Caching(Protocol):
    """A model that computes only new tokens: its layers keep the keys and values of the others in a cache."""

    def next_logits(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Take tokens (batch, new) int64 that follow those in a cache; return logits (batch, vocab) after the last."""


def next_logits(model: nn.Module, tokens: Tensor, cache: Cache) -> Tensor:
    """Feed tokens (batch, new) int64 that follow those in the cache; return the logits after the last, (batch, vocab).

    The tokens join the cache, which must have room for them. A model that is not `Caching` computes all of them again.
    """
    assert tokens.shape[1] <= cache.room, f"{tokens.shape[1]} tokens do not fit into a cache with room for {cache.room}"
    if isinstance(model, Caching):
        logits = model.next_logits(tokens, cache)
    else:
        logits = model(cache.join(tokens))[:, -1]
    cache.length += tokens.shape[1]
    return logits


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    *,
    seq_len: int,
    tokens: int,
    choice: Choice,
    generator: torch.Generator | None = None,
    known: int | None = None,
) -> Iterator[Tensor]:
    """Yield the tokens that follow a prompt (batch, any length from 1) int64, each (batch,).

    model: one of texts, which returns logits (batch, seq, vocab). seq_len: its window. known: draw among the first so
    many of the vocabulary; the rest stands for nothing.

    When the window is full, the older half is forgotten and the cache made anew: positions count from its beginning, so
    those of the tokens that stay change.
    """
    seen = prompt[:, -seq_len:]
    cache, new = Cache(seq_len), seen
    for _ in range(tokens):
        if new.shape[1] > cache.room:
            cache.length = 0
            new = seen = seen[:, -max(seq_len // 2, 1) :]
        token = choice.draw(next_logits(model, new, cache)[:, :known], generator)
        yield token
        new = token[:, None]
        seen = torch.cat([seen, new], dim=1)
