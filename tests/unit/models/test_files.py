"""A model in a file of the user's own: where it is found, and what is said where it is not."""

import hashlib
import os
import pickle
import shlex
import sys
from pathlib import Path

import pytest

from paralab.errors import ConfigError
from paralab.models import SPECS, file_columns, files, folder_of, known, label_of, register_model
from paralab.models.spec import ModelSpec
from paralab.options.config import RunConfig
from paralab.options.flags import read
from paralab.planning.resolve import resolve
from paralab.processes.failure import Failure
from paralab.processes.rank import Rank
from paralab.records.describe import failed
from paralab.records.requested import Requested
from tests.unit.commands.test_check_model import MODEL


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.mark.parametrize("typed", ["net.py", "net.py:", "net.py:SPEC", "./net.py:SPEC"])
def test_a_file_is_known_from_every_working_directory(typed: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "net.py").write_text(MODEL)
    model = RunConfig(model=typed).model
    assert model == f"{here}/net.py:SPEC" == RunConfig(model=model).model
    assert label_of(model) == "net.py:SPEC" and folder_of(model) == "net"
    monkeypatch.chdir("/")
    assert SPECS[model].name == "net" and model not in set(SPECS)


def test_a_file_is_run_once_and_again_when_it_has_changed(here: Path) -> None:
    file = here / "net.py"
    file.write_text(MODEL)
    model = str(known("net.py"))
    first, before = SPECS[model], file_columns(model)
    assert SPECS[model] is first
    config = first.config()
    assert pickle.loads(pickle.dumps(config)) == config
    file.write_text(MODEL.replace('name="net"', 'name="other"'))
    assert SPECS[model].name == "other"
    assert file_columns(model)["model_sha256"] != before["model_sha256"]
    assert file_columns("gpt2") == {"model_file": None, "model_sha256": None}


def test_names_of_its_own_and_modules_beside_it(here: Path) -> None:
    (here / "net.py").write_text(MODEL.replace("import torch\n", "import torch\nfrom beside_it import WIDTH\n", 1))
    (here / "beside_it.py").write_text("WIDTH = 8\n")
    (here / "second.py").write_text(MODEL.replace("SPEC = ", "SMALL = "))
    assert SPECS[str(known("net.py"))].name == "net"
    model = str(known("second.py:SMALL"))
    assert SPECS[model].name == "net" and folder_of(model) == "second-SMALL"


def test_a_row_names_the_file_and_its_content(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "net.py").write_text(MODEL)
    work = resolve(RunConfig(model="net.py", strategy="single"))
    row = failed(work, Requested(), Rank.from_env(), Failure(None, None, "crash", "none"))
    assert (row.model, row.model_file) == ("net", "net.py:SPEC")
    assert row.model_sha256 == hashlib.sha256(MODEL.encode()).hexdigest()
    words = shlex.split(work.command)
    monkeypatch.chdir("/")  # the line works from anywhere
    assert words[:2] == ["paralab", "run"] and resolve(read(words[2:])[0]).run == work.run


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("gpt2", ("gpt2", None)),
        ("gpt2:nano", ("gpt2", "nano")),
        ("a/b.py", ("a/b.py:SPEC", None)),
        ("b.py:NET", ("b.py:NET", None)),
        ("b.py:NET:tiny", ("b.py:NET", "tiny")),
        ("b.py::tiny", ("b.py:SPEC", "tiny")),
    ],
)
def test_lists_of_models_take_sizes(text: str, parts: tuple[str, str | None]) -> None:
    assert files.without_size(text) == parts


@pytest.mark.parametrize(
    ("content", "model", "says"),
    [
        (None, "no.py", "there is no file {here}/no.py: give the path of one, as --model"),
        (MODEL, "net.py:SPEK", "has no ModelSpec SPEK (did you mean SPEC?): it has SPEC, use --model net.py:SPEC"),
        (MODEL, "net.py:Net", "has a type as Net, and not a ModelSpec: it has SPEC, use --model net.py:SPEC"),
        ("x = 1\n", "net.py", "has no ModelSpec SPEC, and no other: add SPEC = ModelSpec(...)"),
        ("x = 1\ny = (\n", "net.py", "{here}/net.py:2: '(' was never closed (SyntaxError): correct the file"),
        ("x = 1\n\x00", "net.py", "correct the file"),
        ("x = 1\nimport nothere_\n", "net.py", "{here}/net.py:2: there is no module nothere_: install it"),
        ("def f():\n    return 1 / 0\n\nf()\n", "net.py", "{here}/net.py:2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "net.py", "{here}/net.py:2: ends the program while it is imported"),
        ("import os\nos._exit(0)\n", "net.py", "{here}/net.py:2: ends the program while it is imported"),
        (
            MODEL.replace('data=lambda config: "alice",', ""),
            "net.py",
            "missing 1 required keyword-only argument: 'data'",
        ),
        (MODEL.replace('tiny_size="tiny"', 'tiny_size="tny"'), "net.py", "'tny' of ModelSpec net is not in sizes (did"),
        (
            MODEL.replace('lambda config: "alice"', '"alice"'),
            "net.py",
            "has a str as data: a function is needed, such as",
        ),
        (MODEL.replace('data=lambda config: "alice"', "data=None"), "net.py", "has a NoneType as data: a function is"),
        (MODEL.replace('name="net"', 'name="a\\nb"'), "net.py", "is called 'a\\nb': a name in one line is needed"),
        (MODEL.replace('first=("embed",)', 'first="embed"'), "net.py", "has a str as first: a tuple is needed"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(content: str | None, model: str, says: str, here: Path) -> None:
    if content is not None:
        (here / "net.py").write_text(content)
    with pytest.raises(ConfigError) as raised:
        SPECS[RunConfig(model=model).model]
    message = str(raised.value)
    assert says.format(here=here) in message and "\n" not in message and message.startswith("--model ")


def test_a_file_that_cannot_be_read_is_said(here: Path) -> None:
    (here / "net.py").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        SPECS[f"{here}/net.py:SPEC"]


def test_a_name_that_is_neither_a_model_nor_a_file_is_refused() -> None:
    for make in (lambda: RunConfig(model="gtp2"), lambda: SPECS["gtp2"]):
        with pytest.raises(
            ConfigError, match=r"gtp2 is unknown \(did you mean gpt2\?\): use one of .*, or FILE.py:NAME"
        ):
            make()


def test_a_model_is_registered_under_its_own_name_once() -> None:
    theirs = SPECS["gpt2"]
    spec: ModelSpec = ModelSpec(
        name="my-net", sizes=theirs.sizes, build=theirs.build, example=theirs.example, data=theirs.data
    )
    with pytest.raises(ConfigError, match="my-net is unknown"):
        RunConfig(model="my-net")
    register_model(spec)
    try:
        assert RunConfig(model="my-net").model == "my-net" and SPECS["my-net"] is spec
        with pytest.raises(ConfigError, match="my-net is known already"):
            register_model(spec)
    finally:
        del SPECS["my-net"]
    with pytest.raises(ConfigError, match="gpt2 is known already"):
        register_model(theirs)


def test_a_file_may_lie_outside_of_the_working_directory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = here / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (here / "net.py").write_text(MODEL)
    assert known("../net.py") == f"{here}/net.py:SPEC" and os.getcwd() == str(folder)
    assert SPECS[str(known("../net.py"))].name == "net"
