"""For the site alone (mkdocs.yml): its navigation is that of index.md, and a link out of docs/ becomes a path."""

import re
from pathlib import Path
from typing import Any

INDEX = Path(__file__).with_name("index.md")
_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)*)([^)]+)\)")


def on_config(config: Any) -> Any:
    """Give mkdocs the navigation: a section for each heading of the index, and the pages that it links."""
    config["nav"] = [INDEX.name, *({title: pages} for title, pages in sections(INDEX.read_text("utf-8")).items())]
    return config


def sections(text: str) -> dict[str, list[str]]:
    """Return the pages that each section of the index links, by its heading."""
    found = {}
    for part in text.split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        pages = [path.partition("#")[0] for _, ups, path in _LINK.findall(body) if not ups]
        found[title] = [page for page in dict.fromkeys(pages) if page.endswith(".md")]
    return found


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the text of a page, whose links out of docs/ are paths of the repository."""
    return inside(markdown, depth=page.file.src_uri.count("/"))


def inside(markdown: str, *, depth: int) -> str:
    """Return a text without links that leave docs/. depth: of the folder of its page below docs/."""

    def as_path(link: re.Match[str]) -> str:
        text, ups, path = link.groups()
        if ups.count("../") <= depth:
            return link[0]
        return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"

    return _LINK.sub(as_path, markdown)
