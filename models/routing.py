"""Which experts a token goes to, and what keeps their loads even: of any model with a mixture of experts.

A token goes to the `top_k` experts that the router gives the largest probabilities, and their outputs are weighted by
these, normalised to a sum of one (Mixtral, Jiang et al. 2024, arXiv:2401.04088, section 2.1).

All statistics are those of one sequence: the balance loss (DeepSeek-V3, arXiv:2412.19437, section 2.1.2, equations 17
to 20), the z-loss (ST-MoE, Zoph et al. 2022, arXiv:2202.08906, equation 5), and the places that an expert has for the
tokens of a sequence (GShard, Lepikhin et al. 2020, arXiv:2006.16668, section 2.2, whose groups are sequences here). So
a mean over samples is the same however the batch is divided. Ranks that share a sequence tell each other their choices;
what each of them makes of its own probabilities is one term of a mean then, as its cross entropy is.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode

from paralab.models.sequence import Sequence, Whole
from paralab.models.spec import at_least_fp32


class MixtureConfig(Protocol):
    """What a router asks of a config. capacity: None where every token gets its experts.

    capacity: places of an expert, as a multiple of what it would take if loads were even. balance, z: coefficients of
    the two losses.
    """

    @property
    def hidden(self) -> int: ...
    @property
    def n_experts(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def capacity(self) -> float | None: ...
    @property
    def balance(self) -> float: ...
    @property
    def z(self) -> float: ...


@dataclass(frozen=True)
class Routing:
    """Where the tokens of a batch go: (batch, seq, top_k), most probable expert first.

    experts: int64; n_experts stands for none, where an expert had no place left. weights: of the outputs.
    loss: (batch,) in fp32 or wider, already multiplied by its coefficients.
    """

    experts: Tensor
    weights: Tensor
    loss: Tensor


class Router(nn.Module, Sequence):
    """A linear layer that scores the experts for each token."""

    def __init__(self, config: MixtureConfig) -> None:
        super().__init__()
        self.config = config
        self.score = nn.Linear(config.hidden, config.n_experts, bias=False)
        self.whole = Whole()

    def forward(self, x: Tensor) -> Routing:
        """Take tokens (batch, seq, hidden). Tokens lose their places in training alone."""
        config = self.config
        logits = at_least_fp32(self.score(x))  # (batch, seq, experts)
        probabilities = logits.softmax(dim=-1)
        weights, experts = probabilities.topk(config.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        chosen = self.whole(experts)  # of the whole sequence, of which x may be a part
        loss = config.balance * balance_loss(probabilities, chosen) + config.z * z_loss(logits)
        if config.capacity is not None and self.training:
            places = math.ceil(config.capacity * config.top_k * chosen.shape[1] / config.n_experts)
            experts = self.take(within_capacity(chosen, config.n_experts, places), 1)
        return Routing(experts, weights.to(x.dtype), loss)

    def experts_chosen(self, out: Routing) -> tuple[Tensor, int]:
        """Return the experts (batch, seq, top_k) of an output of `forward`, and how many there are to choose from."""
        return out.experts, self.config.n_experts


def choosers(named: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    """Return the modules that choose experts, by name: those that have what `Router.experts_chosen` is."""
    return {name: module for name, module in named if callable(getattr(module, "experts_chosen", None))}


def balance_loss(probabilities: Tensor, experts: Tensor) -> Tensor:
    """Return the sum over experts of load times probability, (batch,): 1 where both are even, more where they are not.

    probabilities: (batch, seq, experts), of some tokens of each sequence. experts: those chosen, (batch, whole seq,
    top_k) int64. The load of an expert is its share of the choices of a sequence, times the number of experts; it has
    no gradient.
    """
    count = probabilities.shape[-1]
    load = choices(experts.flatten(1), count).to(probabilities.dtype) * (count / experts[0].numel())
    return (load * probabilities.mean(dim=1)).sum(dim=-1)


def z_loss(logits: Tensor) -> Tensor:
    """Return the mean square of the logarithm of the softmax's denominator, (batch,), of logits (batch, seq, experts).

    It keeps logits small.
    """
    return logits.logsumexp(dim=-1).square().mean(dim=-1)


def choices(experts: Tensor, count: int) -> Tensor:
    """Return how often each of `count` experts is among those in the last dim: (..., n) -> (..., count), int64."""
    zeros = experts.new_zeros(*experts.shape[:-1], count)
    return zeros.scatter_add(-1, experts, torch.ones_like(experts))


def within_capacity(experts: Tensor, count: int, places: int) -> Tensor:
    """Return experts (batch, seq, top_k) int64 with `count` in place of those that have no place left.

    A token takes its places before all that follow it in its sequence, so that it does not depend on them.
    """
    order = experts.flatten(1)  # (batch, seq top_k), by token
    takes = nn.functional.one_hot(order, count)
    before = (takes.cumsum(dim=1) - takes).gather(-1, order[..., None])[..., 0]
    return torch.where(before < places, order, count).view_as(experts)


def sizes_of(counts: Tensor, rows: int) -> list[int]:
    """Return counts (n,) int64 as numbers. Where tensors have no values (the meta device), rows are divided evenly."""
    if counts.is_meta or detect_fake_mode((counts,)) is not None:
        n = len(counts)
        return [rows // n + (i < rows % n) for i in range(n)]
    return counts.tolist()
