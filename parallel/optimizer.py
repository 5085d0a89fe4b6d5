"""The optimizer and its learning rate: AdamW or SGD with the GPT-3 recipe (Brown et al. 2020, appendix B).

Optimizers run on the local piece of each parameter. They are element-wise, so this is the same update as on the
sharded tensor, without its dispatch, and one fused kernel serves every mix of layouts.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor

from parallel.config import RunConfig
from parallel.initialise import local


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


def local_pieces(parameters: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pair each parameter with what the optimizer updates: itself, or an alias of this rank's piece of it."""
    return [(p, nn.Parameter(local(p).detach()) if isinstance(p, DTensor) else p) for p in parameters]


def make_optimizer(
    pieces: list[tuple[Tensor, Tensor]], run: RunConfig, *, shard_over: dist.ProcessGroup | None = None
) -> torch.optim.Optimizer:
    """Return AdamW (fused) or SGD over (parameter, piece) pairs, with weight decay on matrices only.

    With `shard_over`, its state is split over that group (ZeRO-1).
    """
    groups: list[dict[str, Any]] = [
        {"params": [piece for p, piece in pieces if p.ndim >= 2], "weight_decay": run.weight_decay},
        {"params": [piece for p, piece in pieces if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if run.optimizer == "sgd":
        kind: type[torch.optim.Optimizer] = torch.optim.SGD
        options: dict[str, Any] = {"momentum": run.momentum}
    else:
        kind, options = torch.optim.AdamW, {"betas": run.betas, "eps": run.eps}
    options |= {"lr": run.learning_rate, "fused": True}
    if shard_over is None:
        return kind(groups, **options)
    optimizer = ZeroRedundancyOptimizer(
        groups, optimizer_class=kind, process_group=shard_over, parameters_as_bucket_view=True, **options
    )
    for p, piece in pieces:
        if piece is not p:
            local(p).data = piece.data  # the optimizer moved the piece into a bucket
    return optimizer
