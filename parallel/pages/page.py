"""One page from a template: its style and script inside, and a content security policy that allows these two alone."""

import gzip
import re
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from paralab.pages.style import css

HERE = Path(__file__).parent
MOST_PLAIN_BYTES = 64 << 10  # of a file that is carried as it is; a larger one is compressed


_INSIDE = {"style": "css", "script": "js"}


@dataclass(frozen=True)
class Chart:
    """A drawing with its title, and a sentence below it."""

    title: str
    drawing: Markup
    caption: str = ""


@dataclass(frozen=True)
class Download:
    """A file that is carried inside the page. size: as text. uri: with all of its content."""

    name: str
    size: str
    uri: str


def download(name: str, content: bytes, *, kind: str) -> Download:
    """Return a file to be carried inside a page, compressed where it is large. kind: its media type, like text/csv."""
    if len(content) > MOST_PLAIN_BYTES:
        # without the time, so that equal files give equal pages
        name, content, kind = f"{name}.gz", gzip.compress(content, mtime=0), "application/gzip"
    uri = f"data:{kind};base64,{b64encode(content).decode()}"
    return Download(name, f"{max(1, round(len(content) / 1024)):,} KiB", uri)


def render(template: Path, *, title: str, **values: Any) -> str:
    """Return the page of a template that extends `base.html`. values: what the template names."""
    inside = {name: (HERE / f"page.{end}").read_text(encoding="utf-8") for name, end in _INSIDE.items()}
    inside["style"] += css()
    hashes = {f"{name}_hash": b64encode(sha256(text.encode()).digest()).decode() for name, text in inside.items()}
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template.name).render(
        title=title, **{name: Markup(text) for name, text in inside.items()}, **hashes, **values
    )
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\ufffd", page)  # HTML has no place for control characters
