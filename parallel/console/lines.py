"""Sentences in lines that fit a terminal."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator

MOST = 80  # characters of a line, where a terminal has room for more


def width() -> int:
    """Return how many characters a line may have: those of the terminal, from 40 to 80."""
    return min(max(shutil.get_terminal_size().columns, 40), MOST)


def paragraph(text: str, *, indent: str = "", after: str | None = None) -> str:
    """Return a text in lines that fit; options and names are not broken.

    indent: before the first line. after: before the others, where that is something else.
    """
    following = indent if after is None else after
    return textwrap.fill(
        text,
        width(),
        initial_indent=indent,
        subsequent_indent=following,
        break_long_words=False,
        break_on_hyphens=False,
    )


def typed(command: str) -> Iterator[str]:
    """Yield a command in indented lines that can be typed as they are, an option and its value together."""
    line, *options = re.split(" (?=--)", command)
    for option in options:
        if len(line) + len(option) > width() - 6:
            yield f"  {line} \\"
            line = f"  {option}"
        else:
            line += f" {option}"
    yield f"  {line}"


def markdown_row(cells: Iterable[str]) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
