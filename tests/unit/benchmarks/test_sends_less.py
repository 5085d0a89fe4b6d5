"""Losses by samples and times by link are put together as by hand, and what cannot be measured is refused."""

from pathlib import Path

import pytest

from paralab.benchmarks.sends_less.gap import Curves, Loss, Timing, append, drawing, read, table
from paralab.benchmarks.sends_less.methods import METHODS, SendsLessConfig, check, run_of
from paralab.errors import ConfigError, DataError
from paralab.options.flags import flags_of
from paralab.options.flags import resolve as read_config

# Losses fall by 1 in 10 steps of 4 samples; "thin" is 0.5 worse from seed 0 and 0.7 from seed 1 once it has begun.
GAPS = {("ddp", 0): 0.0, ("ddp", 1): 0.0, ("thin", 0): 0.5, ("thin", 1): 0.7}
LOSSES = [
    Loss(method, seed, step, 4 * step, 3 - step / 10 + (gap if step else 0))
    for (method, seed), gap in GAPS.items()
    for step in (0, 10, 20)
]
TIMES = [
    Timing("10mbit", method, turn, seconds * (1 + turn), size)
    for method, seconds, size in (("ddp", 1.0, 800.0), ("thin", 0.25, 100.0))
    for turn in (0, 1, 2)
]


@pytest.fixture
def curves() -> Curves:
    return Curves(LOSSES, TIMES)


def test_the_gap_after_the_same_samples(curves: Curves) -> None:
    assert (curves.batch, curves.steps) == (4, 20)
    assert curves.gaps({"ddp": 20, "thin": 20}, "thin") == pytest.approx([0.5, 0.7])


def test_the_gap_after_the_same_time(curves: Curves) -> None:
    assert curves.step_s("10mbit", "thin") == 0.5  # the median of 0.25, 0.5 and 0.75
    assert curves.window_s("10mbit") == 10  # in which ddp takes 5 steps of 2 s
    assert curves.steps_within("10mbit") == {"ddp": 5, "thin": 20}
    gaps = curves.gaps(curves.steps_within("10mbit"), "thin")
    assert gaps == pytest.approx([1.5 - 2.5, 1.7 - 2.5])


def test_the_loss_that_all_reach(curves: Curves) -> None:
    assert curves.target == pytest.approx(1.6)  # thin, after 20 steps
    assert curves.steps_to("thin", 1.6) == pytest.approx(20)
    assert curves.steps_to("ddp", 1.6) == pytest.approx(14)
    assert curves.steps_to("ddp", 0.5) != curves.steps_to("ddp", 0.5)  # never: not a number


def test_the_table_and_the_picture_have_every_method(curves: Curves) -> None:
    text = table(curves)
    assert "+0.600 [+0.500, +0.700]" in text and "-0.900 [-1.000, -0.800]" in text
    assert max(map(len, text.splitlines())) <= 80
    drawn = drawing(curves)
    assert all(words in drawn for words in ("For the same samples", "Over 10mbit", "ddp", "thin"))


def test_rows_come_back_and_another_file_is_refused(tmp_path: Path) -> None:
    for row in LOSSES:
        append(tmp_path / "losses.csv", row)
    assert read(tmp_path / "losses.csv", Loss) == LOSSES
    assert read(tmp_path / "none.csv", Loss) == []
    with pytest.raises(DataError, match="holds no rows of this command"):
        read(tmp_path / "losses.csv", Timing)
    with pytest.raises(DataError, match="no losses of ddp"):
        Curves([row for row in LOSSES if row.method == "thin"], TIMES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "20"], "use 24"),
        (["--eval-every", "12"], "use 16"),
        (["--layout", "dp4"], "use --methods"),
        (["--methods", "int9"], "int8"),
    ],
)
def test_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(read_config(words, config=SendsLessConfig, prog="x"), ["10mbit"])


def test_a_node_gets_the_same_methods_and_links() -> None:
    config = SendsLessConfig(methods=["int8", "local8"], bandwidths=["5mbit"])
    again = read_config(flags_of(config), config=SendsLessConfig, prog="x")
    assert (again.chosen, again.bandwidths, again.steps) == (["ddp", "int8", "local8"], ["5mbit"], 240)


def test_methods_differ_in_what_they_send_alone() -> None:
    config = SendsLessConfig()
    plain = run_of(config, "ddp", seed=2)
    for method, options in METHODS.items():
        run = run_of(config, method, seed=2)
        assert {name for name in vars(plain) if vars(run)[name] != vars(plain)[name]} == set(options)
