"""The reference pages are what the declarations say today, and leave nothing out."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from paralab.benchmarks.documents import __main__ as document
from paralab.benchmarks.documents import reference
from paralab.benchmarks.documents.strategies import PICTURES
from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.options.commands import COMMANDS
from paralab.options.config import RunConfig
from paralab.options.flags import make_parser
from paralab.records.row import GROUPS, RunRecord

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FOLDERS = ("parallel", "models", "benchmarks", "tests", "docs", "ds_configs")
_FOLDERS = f"(?:{'|'.join(FOLDERS)})"


# Pictures of layouts that are among those of another picture, from the same code
OF_OTHERS = {f"img/strategies/{name}.svg" for name in ("ddp", "hsdp", "model", "pipeline", "tensor", "zero1", "zero2")}


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.long] if page in OF_OTHERS else []) for page in document.PAGES]
)
def test_a_page_is_what_its_command_prints(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert document.main([page]) == 0
    file = page if "." in page else f"{page}.md"
    command = f"python -m paralab.benchmarks.documents {page} > docs/{file}"
    assert capsys.readouterr().out == (DOCS / file).read_text(encoding="utf-8"), f"make it again: {command}"


def test_every_picture_is_there_and_shown() -> None:
    shown = (DOCS / "strategies.md").read_text(encoding="utf-8") + (ROOT / "README.md").read_text(encoding="utf-8")
    assert {path.relative_to(DOCS).as_posix() for path in (DOCS / "img" / "strategies").iterdir()} == set(PICTURES)
    assert all(f"{picture})" in shown for picture in PICTURES)


def test_every_flag_of_every_run_is_on_the_page_with_its_help() -> None:
    page = reference.options()
    every, *of_commands = page.split("\n## ")[1:]
    for action in make_parser(RunConfig)._actions:
        assert action.dest in ("help", "config", "local_rank") or f"`{action.option_strings[0]}" in every
    for command, text in zip(reference.COMMANDS, of_commands, strict=True):
        config, base = reference.COMMANDS[command]
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
    (row,) = [line for line in reference.columns().splitlines() if line.startswith(f"| `{column}` |")]
    assert row.split(" | ")[2].strip() == unit


def test_another_page_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert document.main(["colours"]) == 2
    assert "options|columns" in capsys.readouterr().err


def test_every_layout_that_a_document_types_can_run() -> None:
    typed: dict[str, Any] = {}
    for page in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        found = re.findall(r"--layouts? ([a-z0-9./,]*\d[a-z0-9./,]*)", page.read_text(encoding="utf-8"))
        typed |= {layout.rstrip(".,"): page.name for words in found for layout in words.split(",") if layout}
    assert len(typed) > 3
    for layout, page in typed.items():
        try:
            Layout.parse(layout).check_schedule()
        except LayoutError as error:
            pytest.fail(f"{page}: {error}")


def test_every_decision_is_listed_and_named_by_what_holds_it() -> None:
    index = (DOCS / "design" / "README.md").read_text(encoding="utf-8")
    pages = {page.name: page for page in (DOCS / "design").glob("*.md") if page.name != "README.md"}
    listed = dict(re.findall(r"^- \[(.+)\]\((.+)\)$", index, flags=re.MULTILINE))
    assert listed == {_title(page): name for name, page in pages.items()}
    for page in pages.values():
        text = page.read_text(encoding="utf-8")
        held = text.partition("**Held true by**\n\n")[2]
        assert held.startswith("- `"), f"{page.name}: name the test or the command that holds it"
        for file, test in re.findall(r"`(tests/[^:`]+)::(\w+)`", held):
            assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{page.name}: {file} has no {test}"
        for command in re.findall(r"`paralab ([\w-]+)", held):
            assert command in COMMANDS, f"{page.name}: there is no paralab {command}"


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def test_every_path_and_module_that_is_named_is_there() -> None:
    sources = [path for folder in ("parallel", "models", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md", *DOCS.rglob("*.md")]
    pages += [*(ROOT / "benchmarks").rglob("*.md"), *(ROOT / "parallel").rglob("*.md")]
    for page in pages + sources:
        text = page.read_text(encoding="utf-8")
        named = [ROOT / name for name in re.findall(rf"`({_FOLDERS}/[\w./-]*\w/?)[`:]", text)]
        linked = [page.parent / name for name in re.findall(r"\]\(([^)#:{]+)\)", text)] if page in pages else []
        for path in named + linked:
            assert path.exists(), f"{page.relative_to(ROOT)} names {path}, which is not there"
        for name in re.findall(r"python -m paralab\.([\w.]*\w)", text):
            module = ROOT.joinpath(*("" if name.startswith("benchmarks.") else "parallel", *name.split(".")))
            there = module.with_suffix(".py").exists() or (module / "__main__.py").exists()
            assert there, f"{page.relative_to(ROOT)} starts paralab.{name}, which is not there"
        for name in re.findall(rf"`({_FOLDERS}(?:\.\w+)+)`", text):
            assert _is_there(name), f"{page.relative_to(ROOT)} names {name}, which is not there"


def test_every_file_that_a_page_names_by_its_end_is_there() -> None:
    """`data/zero.py` is that of an axis; what users have and what runs write is listed here."""
    theirs = {"my_model.py", "tokenizer.json", "tokenizer_config.json", "vocab.json", "config.json", "NAME_hf.py"}
    written = {"facts.json", "in-use.json", "manifest.json", "progress.json"}
    inside = [path for folder in (*FOLDERS, "examples") for path in (ROOT / folder).rglob("*")]
    known = {path.relative_to(ROOT).as_posix() for path in (*inside, *ROOT.glob("*"))}
    pages = [ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md", *DOCS.rglob("*.md")]
    for page in pages:
        for name in re.findall(r"`((?:\w+/)*[\w-]+\.(?:py|js|css|html|json|cfg|toml|sh))`", page.read_text("utf-8")):
            found = name in theirs | written or any(f"/{path}".endswith(f"/{name}") for path in known)
            assert found, f"{page.relative_to(ROOT)} names {name}, which is not there"


def _is_there(name: str) -> bool:
    """Return whether a dotted name is a module or a folder, or a name that is in one."""
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir() or path.with_suffix(".py").exists():
        return True
    module = next(
        (place for place in (path.parent.with_suffix(".py"), path.parent / "__init__.py") if place.exists()), None
    )
    return module is not None and re.search(rf"\b{path.name}\b", module.read_text(encoding="utf-8")) is not None
