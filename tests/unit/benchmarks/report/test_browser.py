"""The report in a browser: its script, its policy, and what axe-core finds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paralab import cli
from paralab.benchmarks.report.results_page import render
from tests.chromium import Tab, browser, needs_axe, needs_chromium
from tests.unit.benchmarks.report.test_report import EVIL, A, sweep, write
from tests.unit.synthetic_runs import run, runs

pytestmark = needs_chromium
CPU_TABLE = "[...document.querySelectorAll('table.tools')].at(-1)"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "r.html").write_text(render(sweep(folder)), encoding="utf-8")
    return folder / "r.html"


def column(tab: Tab, name: str) -> list[str]:
    """Return the cells of the rows of CPU runs that are shown."""
    tab.run(f"table = {CPU_TABLE}; heads = [...table.tHead.rows[0].cells].map((head) => head.textContent); 0")
    cells: list[str] = tab.run(
        f"[...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[heads.indexOf('{name}')]"
        ".textContent)"
    )
    return cells


def seconds(cell: str) -> float:
    number, unit = cell.split()
    return float(number) * {"ms": 1e-3, "s": 1.0}[unit]


def test_a_page_works_in_a_browser(tab: Tab, report: Path) -> None:
    tab.open(report)
    assert not tab.complaints and tab.requests == [report.as_uri()]
    by_default = column(tab, "step, median")
    assert len(by_default) == 25 and "–" in by_default

    click = f"{CPU_TABLE}.querySelectorAll('th')[heads.indexOf('step, median')].querySelector('button').click()"
    tab.run(click)
    up = column(tab, "step, median")
    tab.run(click)
    down = column(tab, "step, median")
    assert up[-1] == down[-1] == "–"  # unknown comes last, whichever way
    times = [seconds(cell) for cell in up[:-1]]
    assert times == sorted(times) and times != [seconds(cell) for cell in by_default if cell != "–"]
    assert [seconds(cell) for cell in down[:-1]] == times[::-1]
    sorts = tab.run(f"[...{CPU_TABLE}.querySelectorAll('[aria-sort]')].map((head) => head.getAttribute('aria-sort'))")
    assert sorts == ["descending"]

    typed = "(words) => { const box = [...document.querySelectorAll('input[type=search]')].at(-1); box.value = words; "
    typed += "box.dispatchEvent(new Event('input', { bubbles: true })); return box.closest('.tools').textContent; }"
    assert "1 of 25 rows" in tab.run(f"({typed})('ZERO1 oom')") and column(tab, "method") == ["zero1"]
    assert "6 of 25 rows" in tab.run(f"({typed})('pipeline')") and set(column(tab, "method")) == {"pipeline"}
    assert "25 of 25 rows" in tab.run(f"({typed})('')")

    hidden = f"[...{CPU_TABLE}.rows].map((row) => row.cells[heads.indexOf('run')].hidden)"
    assert all(tab.run(hidden))
    tab.run("[...[...document.querySelectorAll('.columns')].at(-1).querySelectorAll('input')].at(-1).click()")
    assert not any(tab.run(hidden))
    assert not tab.complaints


def test_a_link_unfolds_what_it_points_at_and_a_button_copies(tab: Tab, report: Path) -> None:
    tab.open(report)
    tab.run("location.hash = '#again'; new Promise((done) => setTimeout(done, 50))")
    assert tab.run("document.querySelector('#again > details').open") is True
    assert tab.run("document.querySelector('#environment > details').open") is False
    copied = "document.querySelector('.command > button').click(); getSelection().toString()"
    assert tab.run(copied).startswith("python benchmarks/run.py --strategy")


def test_colours_follow_the_system_and_then_the_reader(tab: Tab, report: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(20, 23, 27)"
    for system, seen in ((False, [light, dark, light, light]), (True, [dark, dark, light, dark])):
        tab.open(report, dark=system)
        tab.run("localStorage.clear()")
        tab.open(report, dark=system)
        found = [tab.run(paper)]
        for _ in range(3):
            tab.run("document.querySelector('[data-theme]').click()")
            found.append(tab.run(paper))
        assert found == seen


@pytest.mark.parametrize("script", [True, False])
def test_a_page_never_scrolls_sideways(tab: Tab, report: Path, script: bool) -> None:
    for width_px in (390, 1280):
        tab.open(report, width_px=width_px, script=script)
        tab.run("for (const one of document.querySelectorAll('details')) one.open = true")
        assert tab.run("document.documentElement.scrollWidth") == width_px
    over = "[...document.querySelectorAll('#work .scroll')].map((one) => one.scrollWidth - one.clientWidth)"
    assert max(tab.run(over)) == 0, "the tables of ways are whole on a wide screen"


def test_on_paper_tables_are_whole_and_say_their_columns_on_every_page(tab: Tab, report: Path) -> None:
    tab.open(report, width_px=718)  # A4 less margins of 1 cm
    tab.call("Emulation.setEmulatedMedia", media="print")
    assert tab.run("document.querySelectorAll('thead button').length") > 10
    boxes = "[...document.querySelectorAll('thead button')].filter((one) => one.getClientRects().length).length"
    assert tab.run(boxes) == 0  # chromium prints a button on the first page of a table alone
    cut = "[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth + 1).length"
    assert tab.run(cut) == 0


def test_without_a_script_all_content_is_there(tab: Tab, report: Path) -> None:
    tab.open(report, script=False)
    assert tab.run("document.querySelectorAll('button, input, select').length") == 0
    assert tab.run("document.querySelectorAll('[hidden]').length") == 0
    assert tab.run(f"{CPU_TABLE}.tBodies[0].rows.length") == 25


def test_hostile_text_does_nothing_in_a_browser(tab: Tab, tmp_path: Path) -> None:
    columns = ("strategy", "layout", "command", "reason", "size", "engine", "model", "cpu_model", "torch_version")
    texts: dict[str, Any] = dict.fromkeys(columns, EVIL)
    path = write(tmp_path / "a.csv", [*runs(A, **texts), *runs(A, **{**texts, "strategy": EVIL + "2"}),
                                      run(99, status="crash", **texts)])  # fmt: skip
    (tmp_path / "r.html").write_text(render([path], title=EVIL), encoding="utf-8")
    tab.open(tmp_path / "r.html")
    before = tab.run("document.querySelectorAll('img, script').length")
    tab.run("for (const one of document.querySelectorAll('thead button')) one.click(); 0")
    tab.run("for (const one of document.querySelectorAll('.command > button')) one.click(); 0")
    tab.run("for (const one of document.querySelectorAll('select')) { one.selectedIndex = one.length - 1;"
            "one.dispatchEvent(new Event('input', { bubbles: true })); } 0")  # fmt: skip
    assert tab.run("[...document.querySelectorAll('option')].some((one) => one.value.includes('<script>'))")
    assert before == tab.run("document.querySelectorAll('img, script').length") == 1  # our own
    assert tab.requests == [(tmp_path / "r.html").as_uri()] and not tab.complaints
    refused = "try { document.querySelector('h1').innerHTML = '<b>x</b>'; 'made' } catch (error) { error.name }"
    assert tab.run(refused) == "TypeError"  # what the policy asks of every script


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plan") / "plan.html"
    words = "plan --layers 24 --hidden 2048 --heads 16 --n-gpus 16 --global-batch-size 64 --gpu A100-SXM4-40GB"
    assert cli.main([*words.split(), "--top=3", f"--report={out}"]) == 0
    return out


def test_the_page_of_a_plan_works_in_a_browser(tab: Tab, plan: Path) -> None:
    for width_px in (390, 1280):
        tab.open(plan, width_px=width_px)
        assert tab.run("document.documentElement.scrollWidth") == width_px
        assert not tab.complaints and tab.requests == [plan.as_uri()]


@needs_axe
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width_px", [390, 1280])
@pytest.mark.parametrize("name", ["report", "plan"])
def test_axe_finds_nothing(tab: Tab, request: pytest.FixtureRequest, name: str, width_px: int, dark: bool) -> None:
    tab.open(request.getfixturevalue(name), width_px=width_px, dark=dark)
    tab.run("for (const one of document.querySelectorAll('details')) one.open = true")
    assert not tab.violations()
