"""The tutorial of docs/own-model.md: what each of its steps says is so, and the layouts that it allows are proved."""

import re
from pathlib import Path
from typing import Any

import pytest

from paralab.cli import main
from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from tests.dist.workers import WorkerPool

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own-model.md").read_text()
STEPS = [
    (re.findall(r"```python\n(.*?)```", section, re.S)[0], re.findall(r"```text\n(.*?)```", section, re.S)[0])
    for section in PAGE.split("\n## ")[1:]
]


def file_of(step: int, folder: Path, *, without: int | None = None) -> str:
    """Write the file as it is after a step (from 1); return its path. without: leave classes of a step out."""
    parts = [code for code, _ in STEPS[:step]]
    if without is not None:
        parts[without - 1] = parts[without - 1][parts[without - 1].index("\nSPEC = ") :]
    file = folder / "my_model.py"
    file.write_text("".join(parts))
    return str(file)


def test_the_page_has_its_four_steps() -> None:
    assert len(STEPS) == 4


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_check_model_says_what_the_page_says(step: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-model", "--model", file_of(step, tmp_path)]) == 0
    out = capsys.readouterr().out
    for line in STEPS[step - 1][1].splitlines():
        assert line in out, out


CASES: list[tuple[int, dict[str, Any]]] = [
    (1, {"layout": "dp2"}),
    (1, {"layout": "dp2/zero1"}),
    (1, {"layout": "dp2/zero3"}),
    (2, {"layout": "dp4/zero3", "checkpointing": "full", "accumulation": 2}),
    (3, {"layout": "tp2"}),
    (3, {"layout": "dp2.tp4/zero3"}),
    (4, {"layout": "pp2/1f1b/mb2"}),
    (4, {"layout": "pp2/zbv/mb2"}),
    (4, {"layout": "dp2.tp2.pp2/zero3/mb2"}),
    # the bias of a key has no gradient but rounding, and begins at values in which a step of that size is lost
    (4, {"layout": "dp4/zero3", "precision": "bf16"}),
]


@pytest.mark.parametrize(("step", "options"), CASES)
def test_what_a_step_allows_is_proved(
    workers: WorkerPool, step: int, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the workers are not
    file_of(step, tmp_path)
    run = RunConfig(**{"model": "my_model.py", "precision": "fp64", "global_batch_size": 16, **options})
    result = workers.run("tests.dist.cases:parity_result", run)[0]
    assert result.passed, result


def test_heads_that_are_not_those_of_the_rank_fail_the_proof_as_the_page_says(
    workers: WorkerPool, tmp_path: Path
) -> None:
    run = RunConfig(
        model=file_of(3, tmp_path, without=3), precision="fp64", layout=Layout.parse("tp2"), global_batch_size=16
    )
    result = workers.run("tests.dist.cases:parity_result", run)[0]
    assert not result.passed


@pytest.mark.parametrize(
    ("step", "layout", "says"),
    [(1, "tp2", '"two.down": "row"'), (1, "pp2/mb2", "nn.ModuleList"), (2, "tp2", '"layers.*.up": "column"')],
)
def test_what_a_step_lacks_is_refused_before_any_process_is_started(
    step: int, layout: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(LayoutError) as raised:
        resolve(RunConfig(model=file_of(step, tmp_path), layout=Layout.parse(layout)))
    assert says in str(raised.value) and "\n" not in str(raised.value)
