"""The pictures of docs/ are those that the commands beside them draw."""

import re
import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paralab.benchmarks.documents import strategies
from paralab.benchmarks.report import plot
from paralab.benchmarks.sends_less.gap import Curves, Loss, Timing, drawing, read, table
from paralab.commands import optimise, sample

ROOT = Path(__file__).parents[4]
IMAGES = ROOT / "docs" / "img"
PAGES = (*(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "results" / "README.md")
READ: dict[str, Callable[[list[str]], Namespace]] = {
    "plot": lambda words: plot.parser().parse_args(words),
    "optimise": lambda words: optimise.parser().parse_args(words),
    "sample": sample._parse,
}


def commands() -> Iterator[list[str]]:
    """Return the words of each command that documents type in a line of its own."""
    drawing = re.compile(r"^    (?:.*&& )?(paralab (?:plot|optimise|sample) .*)$", re.MULTILINE)
    for page in PAGES:
        for line in drawing.findall(page.read_text()):
            yield shlex.split(line, comments=True)[1:]


def test_each_picture_has_a_command_that_parses() -> None:
    drawn = set()
    for name, *words in commands():
        options = READ[name](words)
        out = options.plot if name == "optimise" else options.out
        drawn |= {Path(out).name} if out else set()
    moved = (re.findall(r"^    mv \S+ docs/img/(\S+)$", page.read_text(), flags=re.MULTILINE) for page in PAGES)
    drawn.update(*moved)  # what a measurement draws beside its rows
    pictures = {path.name for path in IMAGES.iterdir() if path.is_file()}
    assert pictures and pictures <= drawn


def test_each_picture_of_a_strategy_is_one_that_is_made_of_the_code() -> None:
    made = {Path(name).name for name in strategies.PICTURES}
    assert {path.name for path in (IMAGES / "strategies").iterdir()} == made


def test_the_picture_of_the_results_is_what_its_command_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = [words for name, *words in commands() if "results.svg" in words[-1]]
    monkeypatch.chdir(ROOT / "benchmarks" / "results")
    place = (Path.cwd() / words[-1]).resolve()
    assert plot.main([*words[:-1], str(tmp_path / "p.svg")]) == 0
    assert (tmp_path / "p.svg").read_bytes() == place.read_bytes(), f"make it again: paralab plot {shlex.join(words)}"


def test_the_picture_of_sending_less_is_what_its_rows_draw() -> None:
    rows = ROOT / "benchmarks" / "results" / "sends-less"
    curves = Curves(read(rows / "losses.csv", Loss), read(rows / "times.csv", Timing))
    assert (IMAGES / "sends-less.svg").read_text() == drawing(curves), "make it again: docs/scaling.md says how"
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert "\n".join(f"    {line}".rstrip() for line in table(curves).split("\n")) in page
