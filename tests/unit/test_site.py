"""The documents as a site: every page is in the index, every link leads somewhere, and mkdocs finds nothing wrong."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from tests.chromium import MOST_S, Tab, browser, needs_axe, needs_chromium

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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    pytest.importorskip("material", reason="no mkdocs-material: pip install -c constraints.txt -e '.[dev]'")
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    env = {**os.environ, **offline}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120), site


def test_mkdocs_builds_the_site_without_a_warning_and_without_the_network(
    built: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, site = built
    assert (done.returncode, done.stderr) == (0, "")
    page = (site / "strategies.html").read_text(encoding="utf-8")
    assert "img/strategies/zero3.svg" in page
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', page)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def _show(tab: Tab, page: Path, width_px: int, dark: bool) -> None:
    """Open a page of the site and wait until the script of the theme has run."""
    tab.open(page, width_px=width_px, dark=dark)
    shown = "document.querySelectorAll('.md-typeset table:not([class])').length == "
    shown += "document.querySelectorAll('.md-typeset__scrollwrap').length && document.body.dataset.mdColorScheme"
    until = time.monotonic() + MOST_S
    while tab.run(shown) != ("slate" if dark else "default"):
        assert time.monotonic() < until, f"{page.name} does not look as the system says: dark is {dark}"
        time.sleep(0.02)


@needs_chromium
def test_a_page_of_the_site_is_for_every_reader(tab: Tab, built: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    for width_px, dark in ((1280, False), (390, True)):  # the second visit is that of a system that has turned dark
        _show(tab, built[1] / "claims.html", width_px, dark)
        assert tab.run("document.documentElement.scrollWidth") == width_px
        links = "[...document.querySelectorAll('.md-content p a')].map((one) => getComputedStyle(one)"
        assert {*tab.run(links + ".textDecorationLine)")} == {"underline"}
        scrolls = "[...document.querySelectorAll('pre > code, .md-typeset__scrollwrap')].filter((one) => "
        scrolls += "one.scrollWidth > one.clientWidth).map((one) => one.tabIndex)"
        assert {*tab.run(scrolls)} <= {0}
    assert tab.run(scrolls)


@needs_chromium
def test_pictures_are_legible_in_a_narrow_window(
    tab: Tab, built: tuple[subprocess.CompletedProcess[str], Path]
) -> None:
    _show(tab, built[1] / "strategies.html", 390, dark=False)
    sizes = "[one.clientWidth, one.naturalWidth, one.parentNode.clientWidth, one.parentNode.tabIndex]"
    found = tab.run(f"[...document.querySelectorAll('.md-content p > img')].map((one) => {sizes})")
    assert found and all(shown == drawn > room and tab_index == 0 for shown, drawn, room, tab_index in found)
    assert tab.run("document.documentElement.scrollWidth") == 390, "the picture scrolls, not the page"


@needs_chromium
@needs_axe
@pytest.mark.parametrize("width_px", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_in_the_site(
    tab: Tab, built: tuple[subprocess.CompletedProcess[str], Path], dark: bool, width_px: int
) -> None:
    for page in (*sorted({*built[1].glob("*.html")} - {built[1] / "404.html"}), built[1] / "design" / "index.html"):
        _show(tab, page, width_px, dark)
        assert not tab.violations(), page.name
