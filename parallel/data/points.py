"""Points in the plane, drawn once from a fixed seed: two moons, a spiral, a checkerboard."""

import hashlib
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from paralab.data.dataset import USED_FOR, Samples
from paralab.errors import DataError
from paralab.models.configs import PointConfig

N_POINTS = {"train": 50_000, "validation": 10_000}
_SEED = 2011


def two_moons(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw two interleaved half circles of radius 1 with noise of 0.05."""
    angle, lower = rng.uniform(0.0, math.pi, n), rng.random(n) < 0.5
    x = np.where(lower, 1.0 - np.cos(angle), np.cos(angle))
    y = np.where(lower, 0.5 - np.sin(angle), np.sin(angle))
    return np.stack([x, y], axis=1) + rng.normal(0.0, 0.05, (n, 2))


def spiral(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw an Archimedean spiral of one and a half turns out to radius 1.5, with noise of 0.03."""
    turn = np.sqrt(rng.random(n))  # the root spreads the points evenly along the arm
    angle = 3.0 * math.pi * turn
    arm = 1.5 * turn[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return arm + rng.normal(0.0, 0.03, (n, 2))


def checkerboard(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw uniformly from the eight dark unit squares of a 4 x 4 board over [-2, 2] x [-2, 2]."""
    x = rng.uniform(-2.0, 2.0, n)
    y = rng.random(n) - 2.0 * rng.integers(0, 2, n) + np.floor(x) % 2
    return np.stack([x, y], axis=1)


SHAPES: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    shape.__name__: shape for shape in (two_moons, spiral, checkerboard)
}


def _draw(name: str, *, split: str) -> np.ndarray:
    rng = np.random.default_rng([_SEED, list(N_POINTS).index(split)])
    return SHAPES[name](N_POINTS[split], rng)  # (n, 2) float64


class Points:
    """A fixed set of points, moved and scaled to mean 0 and standard deviation 1 over both coordinates.

    sha256 is that of the float32 coordinates.
    """

    def __init__(self, name: str, *, split: str) -> None:
        self.name, self.n_samples = name, N_POINTS[split]
        self.found = f"{name}, " + ", ".join(f"{n:,} points for {USED_FOR[x]}" for x, n in N_POINTS.items())
        train = _draw(name, split="train")
        xy = train if split == "train" else _draw(name, split=split)
        # one scale for both coordinates keeps the shape; the training points set it for both splits
        self.xy = ((xy - train.mean(axis=0)) / (train - train.mean(axis=0)).std()).astype(np.float32)
        self.sha256 = hashlib.sha256(self.xy.tobytes()).hexdigest()

    def load(self, indices: np.ndarray) -> tuple[Tensor, ...]:
        """Return the points at `indices` (rows,), (rows, 2) float32."""
        return (torch.from_numpy(self.xy[indices]),)


def open_points(name: str, *, config: PointConfig, split: str) -> Samples:
    """Open a generated set of points by the name of its shape.

    Raises: DataError when the model config asks for other than two dimensions.
    """
    if config.dims != 2:
        raise DataError(f"data {name!r} is points in the plane, the model has dims={config.dims}: set dims=2")
    return Points(name, split=split)
