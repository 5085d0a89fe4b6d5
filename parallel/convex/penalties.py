"""What denoising penalises: the absolute values of a linear map of each row, a signal or an image.

A map W takes rows x (rows, ...) to coefficients (parts, rows, ...): differences of neighbours, or coefficients in
orthonormal bases. Everything is in the dtype of x.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paralab.errors import ConfigError


@dataclass(frozen=True)
class Penalty:
    """A linear map. forward: x (rows, ...) to W x (parts, rows, ...). adjoint: W^T of these. squared_norm: a bound."""

    name: str
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    squared_norm: float

    @property
    def orthonormal(self) -> bool:
        """Whether W is one orthonormal basis, but for what is not penalised: the minimum is then known in one step."""
        return self.squared_norm == 1.0


# --- total variation


def total_variation(dims: int) -> Penalty:
    """Return the differences of neighbours in every dim of a row (anisotropic for images).

    Their squared norm is 4 for each dim or less (Chambolle 2004).
    """
    return Penalty("total variation", differences, undo_differences, 4.0 * dims)


def differences(x: Tensor) -> Tensor:
    """Return D x (dims, rows, ...) of x (rows, ...): next minus this in each dim, and 0 at its end."""
    return torch.stack([torch.diff(x, dim=dim, append=x.narrow(dim, -1, 1)) for dim in range(1, x.dim())])


def undo_differences(p: Tensor) -> Tensor:
    """Return D^T p (rows, ...) of p (dims, rows, ...)."""
    total = torch.zeros_like(p[0])
    for dim, along in enumerate(p, start=1):
        inner = along.narrow(dim, 0, along.shape[dim] - 1)
        total.narrow(dim, 1, inner.shape[dim]).add_(inner)
        total.narrow(dim, 0, inner.shape[dim]).sub_(inner)
    return total


# --- coefficients in orthonormal bases


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of each dim of a row. matrix: of its length. means: the first coefficients, of no detail."""

    matrix: Callable[[int], Tensor]
    means: Callable[[int], int]


def cosines(n: int) -> Tensor:
    """Return the orthonormal discrete cosine transform (DCT-II) of length n as a matrix (n, n) fp64."""
    k, place = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    matrix = math.sqrt(2 / n) * torch.cos(math.pi / n * k * (place + 0.5))
    matrix[0] = math.sqrt(1 / n)
    return matrix


def haar(n: int) -> Tensor:
    """Return the orthonormal Haar wavelets of length n (n, n) fp64: sums and differences for as long as n is even.

    The first rows are the means of the coarsest level, as many as n has left without its factors of 2.
    """
    if n % 2:
        return torch.eye(n, dtype=torch.float64)
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    sums, rest = torch.kron(haar(n // 2), pair[:1]), torch.kron(torch.eye(n // 2, dtype=torch.float64), pair[1:])
    return torch.cat([sums, rest]) / math.sqrt(2)


def _odd_part(n: int) -> int:
    return n // (n & -n)


BASES = {"dct": Basis(cosines, lambda n: 1), "haar": Basis(haar, _odd_part)}
LONGEST = 4096  # dim of a row: the matrix of one takes 128 MiB


def coefficients(names: Sequence[str], shape: Sequence[int]) -> Penalty:
    """Return the coefficients of rows of a shape in these bases (of several dims, their products), without the means.

    Raises: ConfigError for a wavelet where a dim is odd, and for long rows.
    """
    if max(shape) > LONGEST:
        raise ConfigError(f"--transform with {max(shape):,} numbers: use --samples {LONGEST} or fewer")
    if "haar" in names and any(n % 2 for n in shape):
        raise ConfigError(
            f"--transform haar halves each dim, and {' x '.join(map(str, shape))} is odd: use --transform dct, or an "
            "even --samples or --size"
        )
    matrices = [[BASES[name].matrix(n) for n in shape] for name in names]
    means = [tuple(slice(BASES[name].means(n)) for n in shape) for name in names]

    def forward(x: Tensor) -> Tensor:
        return _without_means(torch.stack([_applied(of, x) for of in matrices]))

    def adjoint(p: Tensor) -> Tensor:
        parts = zip(matrices, _without_means(p.clone()), strict=True)
        return torch.stack([_applied([matrix.T for matrix in of], part) for of, part in parts]).sum(0)

    def _without_means(p: Tensor) -> Tensor:
        for part, of in zip(p, means, strict=True):
            part[(slice(None), *of)] = 0
        return p

    return Penalty(f"l1 of {' and '.join(names)}", forward, adjoint, float(len(names)))


def _applied(matrices: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return x (rows, ...) with a matrix applied along each dim but the first."""
    for dim, matrix in enumerate(matrices, start=1):
        x = (x.transpose(dim, -1) @ matrix.T).transpose(dim, -1)
    return x
