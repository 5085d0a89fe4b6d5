"""The optimizer and its learning rate: AdamW or SGD with the GPT-3 recipe (Brown et al. 2020, appendix B).

Optimizers run on the local piece of each parameter. They are element-wise, so this is the same update as on the
sharded tensor, without its dispatch, and one fused kernel serves every mix of layouts.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paralab.axes import eight_bits
from paralab.axes.initialise import is_divided, local
from paralab.options.config import RunConfig


def learning_rate(run: RunConfig, step: int) -> float:
    """Return the learning rate of one step: linear warm-up, then cosine decay to a share of the peak, or constant."""
    if step < run.lr_warmup_steps:
        return run.learning_rate * (step + 1) / run.lr_warmup_steps
    if run.lr_schedule == "constant":
        return run.learning_rate
    decay_steps = max(run.steps + run.warmup - run.lr_warmup_steps, 1)
    progress = min((step - run.lr_warmup_steps) / decay_steps, 1.0)
    ratio = run.min_lr_ratio + (1 - run.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    return run.learning_rate * ratio


@dataclass(frozen=True)
class Piece:
    """A parameter, and what the optimizer of this rank updates of it: `rows` of the local tensor, sharing storage."""

    parameter: Tensor
    updated: Tensor
    rows: slice

    def of(self, grad: Tensor) -> Tensor:
        """Return the same piece, of the shape of `updated`, of the parameter's gradient."""
        return local(grad) if self.rows == slice(None) else local(grad)[self.rows]


def make_pieces(parameters: Iterable[Tensor], *, rank: int = 0, ranks: int = 1) -> list[Piece]:
    """Return this rank's piece of each parameter: all of its local tensor, or its share of the rows (ZeRO-1).

    parameters: (rows, ...). `updated` is (rows / ranks, ...), rounded up, and shorter or empty on the last ranks; one
    of shape () is updated by every rank.
    """
    pieces = []
    for p in parameters:
        divided = ranks > 1 and p.ndim > 0
        rows = share_of_rows(local(p).shape[0], rank=rank, ranks=ranks) if divided else slice(None)
        if divided or is_divided(p):
            mine = local(p).detach()
            pieces.append(Piece(p, nn.Parameter(mine[rows] if divided else mine), rows))
        else:
            pieces.append(Piece(p, p, rows))
    return pieces


def share_of_rows(rows: int, *, rank: int, ranks: int) -> slice:
    """Return the rows that one rank owns: equal blocks, of which the last ones may be short or empty."""
    block = -(-rows // ranks)
    return slice(min(rank * block, rows), min((rank + 1) * block, rows))


def make_optimizer(pieces: list[Piece], run: RunConfig) -> torch.optim.Optimizer:
    """Return AdamW or SGD, fused, or AdamW in 8 bits, over the pieces, with weight decay on matrices only."""
    groups: list[dict[str, Any]] = [
        {"params": [x.updated for x in pieces if x.parameter.ndim >= 2], "weight_decay": run.weight_decay},
        {"params": [x.updated for x in pieces if x.parameter.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if run.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=run.learning_rate, momentum=run.momentum, fused=True)
    if run.optimizer == eight_bits.NAME:
        return eight_bits.make(groups, run)
    return torch.optim.AdamW(groups, lr=run.learning_rate, betas=run.betas, eps=run.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Have an optimizer take its next step with this learning rate, which it keeps as a number or as a tensor ()."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
