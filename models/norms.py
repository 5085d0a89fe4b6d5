"""Batch normalization whose statistics cover the micro-batches of all data-parallel ranks, on every backend.

torch.nn.SyncBatchNorm needs a GPU; this one needs a sum over ranks and nothing else.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab.models.spec import Reducing

_SAMPLES = (0, 2, 3)  # of (batch, channels, height, width): what a statistic of one channel runs over


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d that also takes weights in bf16 beside its fp32 statistics, as a sharded model gives it.

    As there, nothing is tracked while `track_running_stats` is False (a recomputed forward sets it).
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (batch, channels, height, width), by the statistics of this batch in training."""
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        known = self.track_running_stats or not self.training
        mean, var = (self.running_mean, self.running_var) if known else (None, None)
        return F.batch_norm(x, mean, var, *self.scale_and_shift(), self.training, self.momentum, self.eps)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias, both (channels,), in the dtype of the statistics."""
        dtype = self.running_mean.dtype
        return self.weight.to(dtype), self.bias.to(dtype)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm whose affine part stands apart.

    Zero-bubble schedules ask for the gradients of weight and bias alone, for which the CPU kernel of torch 2.13
    crashes on channels-last input.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (batch, channels, height, width) over each group of channels, in the dtype of x."""
        x_hat = F.group_norm(x, self.num_groups, eps=self.eps)
        return torch.addcmul(self.bias[:, None, None], x_hat, self.weight[:, None, None]).to(x.dtype)


class SyncBatchNorm2d(BatchNorm2d, Reducing):
    """Batch norm over the samples of all `ranks`: one all-reduce in forward, one in backward."""

    axis = "dp"

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (batch, channels, height, width); ranks may hold different numbers of samples."""
        if not self.training or self.ranks == 1:
            return super().forward(x)
        x_hat, mean, var, count = _Normalize.apply(x, self.eps, self.all_reduce)
        if self.track_running_stats:
            self._track(mean, var * (count / (count - 1)))
        # The affine part stays outside the function: where a zero-bubble schedule computes the weights' gradients
        # apart, the function does not run (and communicate) a second time.
        weight, bias = self.scale_and_shift()
        return torch.addcmul(bias[:, None, None], x_hat, weight[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_var: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), self.momentum)


class _Normalize(torch.autograd.Function):
    """Return x with mean 0 and variance 1 per channel, the mean, the biased variance and the count behind them.

    One sum over ranks carries (n mean, n (var + mean^2), n) in fp64. Subtracting the squared mean again would
    cancel in fp32; in fp64 it costs 1e-16 (mean / std)^2, less than the fp32 rounding of each rank's own mean.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, eps: float, all_reduce: Callable[[Tensor, str], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        var, mean = torch.var_mean(x.to(_wide(x)), dim=_SAMPLES, correction=0)  # (channels,)
        mean, var = mean.double(), var.double()
        n = x.numel() / x.shape[1]
        sums = all_reduce(torch.cat([n * mean, n * (var + mean**2), mean.new_tensor([n])]), "sum")
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)
        var = (square - mean**2).clamp(min=0)
        x_hat = F.batch_norm(x, mean.to(_wide(x)), var.to(_wide(x)), eps=eps)
        ctx.save_for_backward(x_hat, (var + eps).rsqrt().to(_wide(x)), count)
        ctx.all_reduce = all_reduce
        ctx.mark_non_differentiable(mean, var, count)
        return x_hat, mean, var, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_unused: Tensor) -> tuple[Tensor, None, None]:
        # Ioffe & Szegedy 2015, section 3, with both means over all ranks.
        x_hat, inverse_std, count = ctx.saved_tensors
        wide = grad.to(_wide(grad))
        sums = torch.cat([wide.sum(_SAMPLES), (wide * x_hat).sum(_SAMPLES)])
        means = ctx.all_reduce(sums, "sum") / count.to(sums.dtype)
        mean_grad, mean_product = means[:, None, None].chunk(2)
        # in place: beside gradients in 16 bits two copies in fp32 are there at once, and not four
        grad_x = (wide - mean_grad).addcmul_(x_hat, mean_product, value=-1).mul_(inverse_std[:, None, None])
        return grad_x.to(grad.dtype), None, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
