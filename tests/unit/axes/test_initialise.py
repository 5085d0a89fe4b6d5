"""What code draws from that brings no generator."""

import random

import numpy as np
import torch

from paralab.axes.initialise import seed_generators


def test_ranks_of_other_samples_or_stages_draw_other_numbers_and_the_same_ones_again() -> None:
    def drawn(seed: int, stage: int, data_rank: int) -> tuple[float, ...]:
        seed_generators(seed, stage=stage, data_rank=data_rank)
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    with torch.random.fork_rng():
        each = [drawn(1, 0, 0), drawn(1, 0, 1), drawn(1, 1, 0), drawn(2, 0, 0)]
        assert drawn(1, 0, 0) == each[0]
    assert all(len(set(numbers)) == 4 for numbers in zip(*each, strict=True)), each
