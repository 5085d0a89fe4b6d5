"""Multiclass logistic regression as a function to minimise (Bishop 2006, section 4.3.4): value, gradient, Hessian.

    F(W) = 1/n sum_i (logsumexp(W x_i) - w_{y_i} x_i) + l2 / 2 |W|^2

W is (n_classes, n_features), everything fp64. Every rank has all samples and adds up its share of them: a block of rows
of the full sums, and a part of each batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from paralab.axes.optimizer import share_of_rows
from paralab.models.spec import keep


def centred(images: Tensor) -> Tensor:
    """Return features (n, numbers in an image + 1) fp64: pixels minus their mean over all images, and a one.

    images: (n, ...). A linear function of the pixels with a bias is one of these features without a bias. On the digits
    centred ones have an L that is more than 20 times smaller.
    """
    pixels = images.flatten(1).double()
    return F.pad(pixels - pixels.mean(0), (0, 1), value=1.0)


@dataclass(frozen=True, eq=False)
class SoftmaxRegression:
    """The function over samples whose rows are divided over ranks.

    features: (n, n_features) fp64. labels: (n,) int64. reduce: sums a tensor over the ranks.
    """

    features: Tensor
    labels: Tensor
    n_classes: int
    l2: float
    rank: int = 0
    ranks: int = 1
    reduce: Callable[[Tensor], Tensor] = keep

    def start(self) -> Tensor:
        """Return zeros (n_classes, n_features): all classes are equally likely."""
        return self.features.new_zeros(self.n_classes, self.features.shape[1])

    def alone(self) -> "SoftmaxRegression":
        return replace(self, rank=0, ranks=1, reduce=keep)

    def part_of(self, point: Tensor) -> Tensor:
        """Return all of a point (n_classes, n_features)."""
        return point

    def squared_distance(self, point: Tensor, other: Tensor) -> float:
        """Return |W - V|^2 of two points (n_classes, n_features)."""
        return (point - other).square().sum().item()

    # --- the function

    def value(self, point: Tensor) -> float:
        """Return F at a point (n_classes, n_features)."""
        return self.value_and_gradient(point)[0]

    def gradient_norm(self, point: Tensor) -> float:
        """Return the norm of the gradient at a point (n_classes, n_features)."""
        return self.value_and_gradient(point)[1].norm().item()

    def value_and_gradient(self, point: Tensor) -> tuple[float, Tensor]:
        """Return F and its gradient (n_classes, n_features), over all samples: one reduction."""
        loss, gradient = self._sums(point, self._mine)
        total = self.reduce(torch.cat([gradient.flatten(), loss.view(1)])) / self.n_samples
        value = total[-1].item() + self.l2 / 2 * point.square().sum().item()
        return value, total[:-1].view_as(point) + self.l2 * point

    def batch_gradient(self, point: Tensor, batch: Tensor) -> Tensor:
        """Return the gradient (n_classes, n_features) of the mean over the samples at `batch` (size,): a reduction."""
        _, gradient = self._sums(point, self._share(batch))
        return self.reduce(gradient) / len(batch) + self.l2 * point

    def batch_difference(self, point: Tensor, other: Tensor, batch: Tensor) -> Tensor:
        """Return the difference (n_classes, n_features) of a batch's gradients at two points: one reduction."""
        mine = self._share(batch)
        difference = self._sums(point, mine)[1] - self._sums(other, mine)[1]
        return self.reduce(difference) / len(batch) + self.l2 * (point - other)

    def hessian(self, point: Tensor) -> Tensor:
        """Return the exact Hessian (n_classes n_features, n_classes n_features), in the order of `point.flatten()`.

        Block (i, j) is X^T diag(p_i (1[i = j] - p_j)) X / n (Bishop 2006, equation 4.110), and l2 on the diagonal. The
        blocks on and above the diagonal are reduced over ranks, a class at a time.
        """
        x = self.features[self._mine]
        p = (x @ point.T).softmax(1)  # (rows, n_classes)
        whole = x.new_empty(*point.shape, *point.shape)
        for i in range(self.n_classes):
            row = torch.stack(
                [(x * (p[:, i] * (float(i == j) - p[:, j]))[:, None]).T @ x for j in range(i, self.n_classes)]
            )
            for j, block in enumerate(self.reduce(row), start=i):
                whole[i, :, j] = whole[j, :, i] = block / self.n_samples  # X^T D X is symmetric
        flat = whole.view(point.numel(), point.numel())
        flat.diagonal().add_(self.l2)
        return flat

    def separates(self, point: Tensor) -> bool:
        """Return whether weights (n_classes, n_features) give every sample's own class the largest logit."""
        return bool(((self.features @ point.T).argmax(1) == self.labels).all())

    def grows_without_end(self) -> str:
        """Return why some weight lowers the loss however large it is, so that without l2 there is no minimum.

        A class without samples is one reason: its bias. Another is a feature that has its smallest (or largest) value
        in every sample of a class and not in all others: with its weight, and the bias against it, samples of the
        others move away from that class, and no sample towards it (quasi-complete separation, Albert and Anderson
        1984). Empty where neither is so, which does not say that there is a minimum.
        """
        ends = {"smallest": self.features.amin(0), "largest": self.features.amax(0)}
        varies = ends["smallest"] < ends["largest"]
        for label in range(self.n_classes):
            own = self.features[self.labels == label]
            if not len(own):
                return f"class {label} has no samples"
            for which, end in ends.items():
                if fixed := (varies & (own == end).all(0)).nonzero().flatten().tolist():
                    return (
                        f"pixel {fixed[0]} has its {which} value in all samples of class {label} and not in all others"
                    )
        return ""

    # --- its constants

    @property
    def n_samples(self) -> int:
        return len(self.features)

    @property
    def strong_convexity(self) -> float:
        """The constant mu: the loss alone has none, as equal terms on all classes change nothing."""
        return self.l2

    @cached_property
    def smoothness(self) -> float:
        """The constant L: half the largest eigenvalue of X^T X / n, plus l2 (Boehning 1992)."""
        gram = self.features.T @ self.features / self.n_samples
        return torch.linalg.eigvalsh(gram)[-1].item() / 2 + self.l2

    @cached_property
    def sample_smoothness(self) -> float:
        """The largest constant L of the loss of a single sample, with its l2 term."""
        return self.features.square().sum(1).max().item() / 2 + self.l2

    def expected_smoothness(self, batch: int) -> float:
        """Return the expected smoothness of batches without replacement (Gower et al. 2019)."""
        n = self.n_samples
        whole, single = n * (batch - 1) / (batch * (n - 1)), (n - batch) / (batch * (n - 1))
        return whole * self.smoothness + single * self.sample_smoothness

    def gradient_variance(self, point: Tensor, batch: int) -> float:
        """Return the expected squared norm of a batch's gradient at the optimum, a point (n_classes, n_features).

        After Gower et al. 2019, for batches without replacement.
        """
        logits = self.features @ point.T
        errors = logits.softmax(1) - F.one_hot(self.labels, self.n_classes)  # (n, n_classes)
        squared = errors.square().sum(1) * self.features.square().sum(1)  # of the loss: |error|^2 |x|^2
        mixed = 2 * self.l2 * (errors * logits).sum(1)
        single = (squared + mixed).mean().item() + self.l2**2 * point.square().sum().item()
        return single * (self.n_samples - batch) / (batch * (self.n_samples - 1))

    # --- shares of ranks

    @property
    def _mine(self) -> slice:
        return share_of_rows(self.n_samples, rank=self.rank, ranks=self.ranks)

    def _share(self, batch: Tensor) -> Tensor:
        return batch[share_of_rows(len(batch), rank=self.rank, ranks=self.ranks)]

    def _sums(self, point: Tensor, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross entropy () and its gradient (n_classes, n_features), summed over rows."""
        x, labels = self.features[rows], self.labels[rows][:, None]
        log_p = (x @ point.T).log_softmax(1)
        errors = log_p.exp().scatter_add_(1, labels, -torch.ones_like(labels, dtype=x.dtype))
        return -log_p.gather(1, labels).sum(), errors.T @ x


def hessian_bytes(n_classes: int, n_features: int) -> int:
    """Return what a step of Newton's method holds in a process: the Hessian, its Cholesky factor, a row of blocks."""
    return 8 * (2 * (n_classes * n_features) ** 2 + 2 * n_classes * n_features**2)


def batches(problem: SoftmaxRegression, *, size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Yield the batches (size,) int64 of one epoch: independent draws, each without replacement, alike on all ranks."""
    generator = np.random.default_rng([seed, epoch])
    for _ in range(-(-problem.n_samples // size)):
        yield torch.from_numpy(generator.choice(problem.n_samples, size, replace=False, shuffle=False))
