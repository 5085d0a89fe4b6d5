"""The names of `import paralab`: they are there and documented, and nothing heavy is imported before one is used."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import paralab

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "library.md").read_text()


def test_every_name_is_there_and_on_its_page() -> None:
    for name in paralab.__all__:
        assert inspect.getdoc(getattr(paralab, name)), name
        assert re.search(rf"\b{name}\b", PAGE), name


def test_another_name_is_refused_with_those_there_are() -> None:
    assert not hasattr(paralab, "parallelise")


def test_importing_it_does_not_import_torch(tmp_path: Path) -> None:
    code = "import paralab, sys; print('torch' in sys.modules); paralab.join; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout.split() == ["False", "True"], done.stderr
