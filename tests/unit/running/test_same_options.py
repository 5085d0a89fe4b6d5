"""Ranks of several machines, each started with a command line of its own."""

from dataclasses import replace

import pytest

from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.running.same_options import asked_of, difference
from paralab.training.options import TrainConfig

RUN = RunConfig(size="tiny", seed=1, data="/here/text.txt")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 2}, "--seed is 2 on rank 1 and 1 on rank 0: start all ranks alike"),
        ({"layout": Layout.parse("dp2/zero3")}, "--layout is dp2/zero3 on rank 1 and None on rank 0"),
        ({"steps": 21}, "--steps is 21 on rank 1 and 20 on rank 0"),
        ({"data": "/here/other.txt"}, "--data is other.txt on rank 1 and text.txt on rank 0"),
        ({"betas": (0.8, 0.95)}, "--betas is (0.8, 0.95) on rank 1 and "),
    ],
)
def test_a_rank_that_is_asked_for_something_else_is_named(changes: dict, said: str) -> None:
    other = asked_of(replace(RUN, **changes))
    assert (difference([asked_of(RUN), other, asked_of(RUN)]) or "").startswith(said)


def test_each_machine_has_its_own_folders_threads_and_workers() -> None:
    other = replace(RUN, data="/there/text.txt", threads=3, out="b.csv", loader_workers=1, timeout_s=5.0, force=True)
    assert difference([asked_of(RUN), asked_of(other)]) is None


def test_a_rank_that_trains_beside_one_that_measures_is_named() -> None:
    other = TrainConfig(size="tiny", seed=1, data="text.txt", nproc=RUN.nproc, steps=RUN.steps, warmup=RUN.warmup)
    said = difference([asked_of(RUN), asked_of(other)])
    assert said is not None and said.startswith("--epochs is None on rank 1 and no option on rank 0")
