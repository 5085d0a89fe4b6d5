"""The reference pages are what the declarations say today, and leave nothing out."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from benchmarks import document
from parallel.errors import LayoutError
from parallel.layout import Layout
from parallel.options.config import RunConfig, make_parser
from parallel.records.row import GROUPS, RunRecord

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("page", document.PAGES)
def test_a_page_is_what_its_command_prints(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert document.main([page]) == 0
    command = f"python -m benchmarks.document {page} > docs/{page}.md"
    assert capsys.readouterr().out == (DOCS / f"{page}.md").read_text(encoding="utf-8"), f"make it again: {command}"


def test_every_flag_of_every_run_is_on_the_page_with_its_help() -> None:
    page = document.options()
    every, *of_commands = page.split("\n## ")[1:]
    for action in make_parser(RunConfig)._actions:
        assert action.dest in ("help", "config", "local_rank") or f"`{action.option_strings[0]}" in every
    for command, text in zip(document.COMMANDS, of_commands, strict=True):
        config, base = document.COMMANDS[command]
        added = {declared.name for declared in fields(config)} - {declared.name for declared in fields(base)}
        assert text.startswith(command) and all(f"| `--{name.replace('_', '-')}" in text for name in added)


def test_every_column_has_a_meaning_and_a_group() -> None:
    assert all(column.metadata["meaning"] for column in fields(RunRecord))
    names = [column.name for column in fields(RunRecord)]
    assert set(GROUPS) <= set(names) and names[0] in GROUPS


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        ("step_time_p50_s", "s"),
        ("tokens_per_s", "1/s"),
        ("tokens_per_s_per_device", "1/s"),
        ("link_mbit_per_s", "Mbit/s"),
        ("peak_tflops_per_device", "TFLOP/s"),
        ("gpu_temperature_max_c", "°C"),
        ("comm_dp_sent_bytes", "bytes"),
        ("mfu", "0 to 1"),
        ("zero", ""),
        ("status", ""),
    ],
)
def test_a_unit_is_the_end_of_the_name(column: str, unit: str) -> None:
    (row,) = [line for line in document.columns().splitlines() if line.startswith(f"| `{column}` |")]
    assert row.split(" | ")[2].strip() == unit


def test_another_page_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert document.main(["colours"]) == 2
    assert "options|columns" in capsys.readouterr().err


def test_every_layout_that_a_document_types_can_run() -> None:
    typed = {}
    for page in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        found = re.findall(r"--layouts? ([a-z0-9./,]*\d[a-z0-9./,]*)", page.read_text(encoding="utf-8"))
        typed |= {layout.rstrip(".,"): page.name for words in found for layout in words.split(",") if layout}
    assert len(typed) > 3
    for layout, page in typed.items():
        try:
            Layout.parse(layout).check_schedule()
        except LayoutError as error:
            pytest.fail(f"{page}: {error}")
