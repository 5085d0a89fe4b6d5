"""The list of strategies and that of models: each is the only one, and what is shown of them is read from it."""

import os
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from paralab import cli
from paralab.commands.strategies import markdown
from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.layout.strategies import ALIASES, STRATEGIES, layout_of, name_of, stands_for
from paralab.models import NAMES, SPECS
from paralab.options.config import RunConfig
from paralab.options.flags import make_parser
from paralab.options.flags import resolve as read_config
from paralab.planning.resolve import resolve

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_runs_on_the_fewest_processes_it_names_and_is_called_by_its_name(name: str) -> None:
    strategy = STRATEGIES[name]
    layout = layout_of(name, strategy.least)
    assert layout.world_size == strategy.least and stands_for(name, layout)
    assert set(layout_of(name, 8).axes) == set(strategy.axes)
    assert name_of(layout_of(name, 8)) == name
    if strategy.least > 1:
        with pytest.raises(LayoutError):
            layout_of(name, strategy.least - 1)
    assert strategy.when and strategy.costs


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("dp1", "single"),
        ("dp1/zero3", "zero3"),
        ("dp2", "ddp"),
        ("dp2/zero2", "zero2"),
        ("tp2/sp", "tensor"),
        ("pp2/naive", "model"),
        ("pp2/zbv", "pipeline"),
        ("tp2.pp2/gpipe", "2d"),
        ("dp2.tp2", "dp+tp"),
        ("dp2.tp2/zero3", "dp+tp"),
        ("dp8/zero2/shard2", "hsdp"),
        ("dp8/zero1/shard2", "zero1"),
        ("dp4.tp2/zero3/shard2", "dp+tp"),
        ("dp2.pp2/zero1/1f1b/mb4", "dp+pp"),
        ("dp2.tp2.pp2/zero1/1f1b/mb4", "3d"),
    ],
)
def test_a_layout_is_called_by_the_axes_that_it_divides(layout: str, name: str) -> None:
    assert name_of(Layout.parse(layout)) == name


def test_a_name_that_is_not_that_of_the_layout_is_refused() -> None:
    with pytest.raises(
        LayoutError, match=r"--strategy 2d with --layout dp2.tp2, which is dp\+tp: leave one of them out"
    ):
        resolve(RunConfig(size="tiny", strategy="2d", layout=Layout.parse("dp2.tp2")))


def test_a_layout_without_a_strategy_is_one_line_that_does_the_same_again() -> None:
    work = resolve(RunConfig(size="tiny", layout=Layout.parse("dp2.tp2")))
    words = shlex.split(work.command)[2:]
    again = resolve(read_config(words))
    assert (work.strategy, again.strategy, again.layout) == ("dp+tp", "dp+tp", work.layout)


def test_the_readme_shows_the_strategies_as_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["strategies", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == markdown(4)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"\n{markdown(4)}\n\n" in readme, "put what `paralab strategies --markdown` prints into README.md"


def test_all_that_is_said_of_a_strategy_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["strategies", "--nproc", "6"]) == 0
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines())
    unwrapped = " ".join(said.split())
    assert all(part in unwrapped for s in STRATEGIES.values() for part in (s.name, s.when, s.costs, *s.aliases))
    assert "2d        tp2.pp3/1f1b/mb6\n" in said and "3d        dp2.tp2.pp2/1f1b/mb4 (8 ranks)\n" in said


def test_help_offers_all_of_both_lists() -> None:
    words = " ".join(make_parser().format_help().split())
    assert ", ".join((*STRATEGIES, *ALIASES)) in words and ", ".join(NAMES) in words


def test_a_model_is_named_like_its_file() -> None:
    assert list(SPECS) == list(NAMES)
    for name in NAMES:
        assert SPECS[name] is import_module(f"paralab.models.{name}").SPEC and SPECS[name].name == name


def test_both_lists_are_read_without_torch() -> None:
    code = (
        "import sys; from models import SPECS; from paralab.cli import main; "
        "assert 'gpt2' in SPECS and not main(['strategies']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")
