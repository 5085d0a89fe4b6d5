"""Every example runs as its first lines say, and shows what it claims."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINES = sorted((ROOT / "examples" / "lines").glob("paralab_*.py"))  # those that docs/library.md counts
LEAVES_A_GROUP = "accelerate_before.py"  # and makes one, which meets what an earlier one left in torchrun's store
USERS_OWN = {"accelerate", "transformers"}
SAYS_NOTHING_OF_PARITY = {"accelerate_before", "accelerate_after"}


@pytest.fixture(scope="module")
def printed() -> dict[str, list[str]]:
    """Return the lines that each example prints with two processes, by name."""
    text = ""
    for together in (True, False):
        paths = [str(path) for path in (*EXAMPLES, *LINES) if (path.name != LEAVES_A_GROUP) == together]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += [str(ROOT / "tests" / "e2e" / "run_examples.py"), *paths]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        text += done.stdout
    sections = re.split(r"^== (\w+)\.py$", text, flags=re.MULTILINE)[1:]
    return {name: text.split("\n") for name, text in zip(sections[::2], sections[1::2], strict=True)}


def test_the_layouts_of_the_examples_are_proved(printed: dict[str, list[str]]) -> None:
    assert printed.keys() == {path.stem for path in (*EXAMPLES, *LINES)}
    for name in {path.stem for path in EXAMPLES} - SAYS_NOTHING_OF_PARITY:
        assert any(line.endswith("passed") for line in printed[name]), (name, printed[name])
        assert not any("FAILED" in line for line in printed[name])


def test_a_script_that_moved_over_has_the_same_losses(printed: dict[str, list[str]]) -> None:
    before, after = ([x for x in printed[f"accelerate_{when}"] if x] for when in ("before", "after"))
    assert before == after and len(before) == 8


def test_the_scripts_whose_lines_are_counted_have_the_same_losses(printed: dict[str, list[str]]) -> None:
    losses = [[line for line in printed[path.stem] if line.startswith("loss ")] for path in LINES]
    assert len(losses) == 4 and all(found == losses[0] and len(found) == 4 for found in losses)


def test_an_example_runs_alone_as_well(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "minimal.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stdout.split("\n")[0]) == (0, "single passed"), done.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_imports_what_a_user_would(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 60
    assert f"examples/{path.name}" in (ast.get_docstring(ast.parse(text)) or "")
    for node in ast.walk(ast.parse(text)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name == "paralab" or name.split(".")[0] in {"torch", *USERS_OWN}, name
