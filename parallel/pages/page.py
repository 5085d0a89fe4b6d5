"""One page from a template: its style inside, a content security policy that allows that style alone, no script."""

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent


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


def download(name: str, content: bytes, *, kind: str, size: str) -> Download:
    """Return a file to be carried inside a page. kind: its media type, such as text/csv."""
    return Download(name, size, f"data:{kind};charset=utf-8;base64,{b64encode(content).decode()}")


def render(template: Path, *, title: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """Return the page of a template that extends `base.html`. values: what the template names."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    page = environment.get_template(template.name).render(
        title=title, style=Markup(style), style_hash=b64encode(sha256(style.encode()).digest()).decode(), **values
    )
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\ufffd", page)  # HTML has no place for control characters
