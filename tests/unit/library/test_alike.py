"""Ranks of a program that ask for different things: said by name, before they wait for each other or drift apart."""

from dataclasses import replace
from typing import Any

import pytest

from paralab.layout import Layout
from paralab.library.alike import difference
from paralab.library.work import OwnRun

RUN = OwnRun(model="own", layout=Layout.parse("dp2"), engine="torch", clip_norm=1.0)


def test_ranks_that_ask_for_the_same_are_one_run() -> None:
    assert difference([RUN, replace(RUN)]) is None


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("layout", Layout.parse("dp2/zero3"), "layout is dp2/zero3 on rank 1 and dp2 on rank 0"),
        ("clip_norm", None, "clip_norm is None on rank 1 and 1.0 on rank 0"),
        ("seed", 7, "seed is 7 on rank 1 and 0 on rank 0"),
    ],
)
def test_what_ranks_ask_for_differently_is_named(name: str, value: Any, said: str) -> None:
    assert difference([RUN, replace(RUN, **{name: value})]) == f"{said}: give it the same on every rank"
