"""The commands that the README and the first hour tell a newcomer to type are ones that paralab takes."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from paralab.benchmarks import config
from paralab.benchmarks.report import compare, report
from paralab.commands import explain, plan, strategies
from paralab.options.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("first-hour", "strategies", "layouts", "report", "parity", "compare", "dry-run", "faq")
PAGES = ("README.md", *(f"docs/{name}.md" for name in NAMES))
READ: dict[str, Callable[[Sequence[str]], object]] = {
    "explain": explain.requested,
    "plan": plan._parser().parse_args,
    "report": report._parser().parse_args,
    "strategies": strategies._parse,
    "config": lambda words: config.main(words) == 0,
    "compare": lambda words: compare._parser().parse_args([*words]),
}


def typed(page: str) -> list[list[str]]:
    """Return the words of each command of a page, in indented blocks and in its sentences."""
    text = re.sub(r"\\\n *", "", (ROOT / page).read_text(encoding="utf-8"))
    blocks = re.findall(r"^ {4,}(?:paralab|\./launch\.sh) (.+)$", text, flags=re.MULTILINE)
    sentences = re.findall(r"`paralab ([a-z]+ [^`]*--[^`]+)`", text)
    return [shlex.split(line, comments=True) for line in (*blocks, *sentences) if "[" not in line]


@pytest.mark.parametrize(
    "words", [pytest.param(words, id=" ".join(words)) for page in PAGES for words in typed(page) if words]
)
def test_a_command_of_the_page_is_taken(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command, *rest = words
    if command in ("test", "verify", "bench", "run", "tour"):
        assert command == "test" or config.main([command, *rest]) == 0
    else:
        assert command in COMMANDS and READ[command](rest)


def test_the_first_hour_has_commands() -> None:
    assert {words[0] for words in typed("docs/first-hour.md")} == {
        "explain",
        "run",
        "verify",
        "bench",
        "compare",
        "report",
        "plan",
        "config",
    }
