"""Pictures are refused before any work where nothing is there to draw them."""

import sys
from pathlib import Path

import pytest

from paralab import cli
from paralab.console import pictures


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pictures.find_spec
    monkeypatch.setattr(pictures, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("optimise --problem signal --samples 8 --epochs 1 --plot {}/a.pdf", "pip install 'paralab[plot]'"),
        ("sample --checkpoint nothing --out {}/a.png", "or use a name ending in .svg"),
        ("invert --checkpoint nothing --text a --out {}/a.png", "or use a name ending in .svg"),
    ],
)
@pytest.mark.usefixtures("no_matplotlib")
def test_it_is_said_at_once(words: str, advice: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word.format(tmp_path) for word in words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"drawing {tmp_path}/a." in line and advice in line
    assert not list(tmp_path.iterdir())


def test_what_is_no_picture_needs_nothing(no_matplotlib: None) -> None:
    pictures.check_can_draw("losses.csv")
    pictures.check_can_draw("losses.svg")
    pictures.check_can_draw(None)
