"""Inverting a language model: vectors in the place of a prompt after which it writes a given text.

A model reads the embeddings of tokens, which are points of a space. Any other points can be put in their place and, as
the model is differentiable, be moved by gradient descent until it writes what is wanted (prompt tuning, Lester et al.
2021). The weights stay as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab.errors import ModelError


@dataclass(frozen=True)
class Table:
    """The embedding of tokens of a model. vectors: (known, hidden), what it makes of each known token."""

    module: nn.Embedding
    vectors: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, known: int) -> "Table":
        """Find it: the embedding that is given the tokens themselves. Raises: ModelError where there is none."""
        tokens = torch.tensor([[1, 0]], device=next(model.parameters()).device)
        found: list[nn.Embedding] = []
        hooks = [
            module.register_forward_hook(
                lambda module, given, _: found.append(module) if torch.equal(given[0], tokens) else None
            )
            for module in model.modules()
            if isinstance(module, nn.Embedding)
        ]
        try:
            model(tokens)
        finally:
            for hook in hooks:
                hook.remove()
        if not found:
            raise ModelError("no nn.Embedding of this model is given the tokens: give a model that has one")
        return cls(found[0], found[0](torch.arange(known, device=tokens.device)))

    @property
    def scale(self) -> float:
        """Root mean square of all numbers in it."""
        return float(self.vectors.square().mean().sqrt())

    def nearest(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest token to each of vectors (..., hidden) by Euclidean distance, (...), and its distance."""
        distance, token = torch.cdist(vectors.flatten(0, -2), self.vectors).min(-1)
        return token.view(vectors.shape[:-1]), distance.view(vectors.shape[:-1])

    @property
    def typical_distance(self) -> float:
        """Mean distance between two tokens, over as many pairs as there are tokens."""
        return float((self.vectors - self.vectors.roll(len(self.vectors) // 2, 0)).norm(dim=-1).mean())


@contextmanager
def in_place_of_tokens(table: Table, vectors: Tensor) -> Iterator[None]:
    """Give a model these vectors (batch, length, hidden) as the embeddings of its first tokens, whatever they are."""

    def replace(module: nn.Module, given: object, embedded: Tensor) -> Tensor:
        return torch.cat([vectors.to(embedded.dtype), embedded[:, vectors.shape[1] :]], dim=1)

    hook = table.module.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def losses(model: nn.Module, table: Table, vectors: Tensor, text: Tensor) -> Tensor:
    """Return the cross entropy of a text after each prompt, mean over its tokens, in nats: (prompts,).

    vectors: (prompts, length, hidden). text: (tokens,) int64.
    """
    prompts, length, _ = vectors.shape
    tokens = F.pad(text[:-1], (length, 0)).expand(prompts, -1)
    with in_place_of_tokens(table, vectors):
        logits = model(tokens)[:, length - 1 :]  # (prompts, tokens, vocab)
    wanted = text.expand(prompts, -1)
    return F.cross_entropy(logits.float().transpose(1, 2), wanted, reduction="none").mean(-1)


@torch.no_grad()
def greedy(model: nn.Module, table: Table, vectors: Tensor, *, tokens: int, known: int) -> Tensor:
    """Return the likeliest tokens after each prompt (prompts, length, hidden), one after the other: (prompts, tokens).

    known: the tokens that a text can hold, the first of the vocabulary.
    """
    seen = torch.zeros(vectors.shape[:2], dtype=torch.int64, device=vectors.device)
    with in_place_of_tokens(table, vectors):
        for _ in range(tokens):
            seen = torch.cat([seen, model(seen)[:, -1:, :known].argmax(-1)], dim=1)
    return seen[:, vectors.shape[1] :]


@dataclass(frozen=True)
class Inverted:
    """What was found. vectors: (restarts, length, hidden), those of the lowest loss of each restart, which is `lowest`.

    curve: losses (steps + 1, restarts), before each step and after the last.
    """

    vectors: Tensor
    lowest: Tensor
    curve: Tensor

    @property
    def best(self) -> int:
        """The restart with the lowest loss."""
        return int(self.lowest.argmin())


def invert(
    model: nn.Module,
    table: Table,
    text: Tensor,
    *,
    length: int,
    restarts: int,
    steps: int,
    learning_rate: float,
    seed: int,
    each_step: Callable[[], None] = lambda: None,
) -> Inverted:
    """Find prompts of `length` vectors after which a model writes a text (tokens,) int64, by Adam.

    Each restart begins at the embeddings of tokens that are drawn from the seed and its number. learning_rate: in units
    of `table.scale`; it falls to zero along a cosine. The parameters of the model are frozen.
    """
    model.requires_grad_(False)
    vectors = torch.stack([_start(table, length, seed + i) for i in range(restarts)]).requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=learning_rate * table.scale)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, lowest = vectors.detach().clone(), torch.full((restarts,), torch.inf, device=vectors.device)
    curve = []
    for step in range(steps + 1):
        loss = losses(model, table, vectors, text)
        better = loss.detach() < lowest
        best[better], lowest = vectors.detach()[better], loss.detach().minimum(lowest)
        curve.append(loss.detach())
        if step < steps:
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            schedule.step()
        each_step()
    return Inverted(best, lowest, torch.stack(curve))


def _start(table: Table, length: int, seed: int) -> Tensor:
    tokens = torch.randint(len(table.vectors), (length,), generator=torch.Generator().manual_seed(seed))
    return table.vectors[tokens.to(table.vectors.device)].clone()
