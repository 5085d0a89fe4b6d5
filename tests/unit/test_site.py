"""The documents as a site: every page is in the index, every link leads somewhere, and mkdocs finds nothing wrong."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_index_names_every_page(hooks: ModuleType) -> None:
    sections = hooks.sections((DOCS / "index.md").read_text(encoding="utf-8"))
    listed = [page for pages in sections.values() for page in pages]
    assert sorted(listed) == sorted({*listed}), "a page is in two sections"
    pages = {page.name for page in DOCS.glob("*.md")} - {"index.md"} | {"design/README.md"}
    assert set(listed) == pages, "docs/index.md is the navigation of the site: name each page there, once"


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """Return what headings are called in links: lower case, without signs, a hyphen for each space."""
    titles = re.findall(r"^#+ (.+)$", _without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    words = (re.sub(r"\[([^\]]+)\]\([^)]*\)|`", r"\1", title).strip().lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in words}


def _links() -> Iterator[tuple[Path, str]]:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md", *DOCS.rglob("*.md")):
        for link in _LINK.findall(_without_code(page.read_text(encoding="utf-8"))):
            if not re.match(r"[a-z]+:", link):
                yield page, link


def test_every_link_leads_to_a_file_and_a_heading_of_it() -> None:
    links = list(_links())
    assert len(links) > 100
    for page, link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), f"{page.relative_to(ROOT)}: {link} is not there"
        assert not anchor or anchor in _anchors(target), f"{page.relative_to(ROOT)}: {target.name} has no #{anchor}"


def test_links_out_of_the_documents_become_paths(hooks: ModuleType) -> None:
    text = "see [minimal.py](../examples/minimal.py), [the rules](../models/spec.py) and [plans](planner.md#a)"
    assert hooks.inside(text, depth=0) == (
        "see `examples/minimal.py`, the rules (`models/spec.py`) and [plans](planner.md#a)"
    )
    assert hooks.inside("[compare](../compare.md) [tests](../../tests)", depth=1) == "[compare](../compare.md) `tests`"


def test_mkdocs_builds_the_site_without_a_warning_and_without_the_network(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="no mkdocs-material: pip install -c constraints.txt -e '.[dev]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "site" / "strategies.html").read_text(encoding="utf-8")
    assert "img/strategies/zero3.svg" in page
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', page)
