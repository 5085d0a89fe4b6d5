"""Numbers as people type them: read by every command alike, or refused with what to type."""

import argparse
from collections.abc import Callable

import pytest

from paralab.errors import ConfigError
from paralab.options.arguments import positive, whole
from paralab.options.config import RunConfig
from paralab.options.flags import resolve
from paralab.options.numbers import meant
from paralab.planning import cases


def _flag(name: str, option: str) -> Callable[[str], float]:
    return lambda text: getattr(resolve([name, text], config=RunConfig), option)


def _cell(column: str) -> Callable[[str], float]:
    return lambda text: cases.parse({column: text})[column]


WHOLE = [whole(1), _flag("--steps", "steps"), _cell("hidden")]
ANY = [positive, _flag("--learning-rate", "learning_rate"), _cell("intra_node_gbyte_per_s")]


@pytest.mark.parametrize(
    ("readers", "text", "stands_for"),
    [
        *((WHOLE, text, "1000") for text in ("1_000", "1,000", "1'000", "1 000", "1k", "0x3e8")),
        (WHOLE, "2.5B", "2500000000"),
        (WHOLE, "3m", "3000000"),
        (WHOLE, "2G", "2000000000"),
        (ANY, "1,234,567", "1234567"),
        (WHOLE, "५", "5"),
        (ANY, "1_000", "1000"),
        (ANY, "0,5", "0.5"),
        (ANY, "1/2", "0.5"),
        (ANY, "½", "0.5"),
        (ANY, "50%", "0.5"),
    ],
)
def test_a_number_written_in_another_way_is_refused_with_what_it_stands_for(
    readers: list[Callable[[str], float]], text: str, stands_for: str
) -> None:
    for read in readers:
        with pytest.raises((ConfigError, argparse.ArgumentTypeError)) as refused:
            read(text)
        assert f"(did you mean {stands_for}?)" in str(refused.value)


@pytest.mark.parametrize("text", ["seven", "1.5", "80GB", "1,00,0", "nan", "0x", "9" * 60, "-", "1e"])
def test_what_stands_for_no_whole_number_is_refused_without_a_guess(text: str) -> None:
    for read in WHOLE:
        with pytest.raises((ConfigError, argparse.ArgumentTypeError)) as refused:
            read(text)
        assert "did you mean" not in str(refused.value)


def test_numbers_that_are_read_are_left_alone() -> None:
    assert [read(" +7 ") for read in WHOLE] == [7, 7, 7]
    assert [read("25e-1") for read in ANY] == [2.5, 2.5, 2.5]
    assert meant("7", whole=True) == meant("-0.5") == meant("inf") == ""
