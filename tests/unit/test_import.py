"""What an installation puts on the import path: the one name `paralab`."""

import ast
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_FORMER_NAMES = (
    "import sys; sys.meta_path = [finder for finder in sys.meta_path if 'FormerNames' not in str(finder)]\n"
)


def run(code: str, folder: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("init", [True, False], ids=["packages", "folders"])
def test_folders_of_the_users_own_stand_beside_paralab(init: bool, tmp_path: Path) -> None:
    for name in ("models", "benchmarks", "parallel", "ds_configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text("VALUE = 'mine'\n")
        if init:
            (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "script.py").write_text(
        "import paralab, paralab.models.gpt2, paralab.benchmarks.run\n"
        "from models.mine import VALUE as a\n"
        "from benchmarks.mine import VALUE as b\n"
        "from parallel.mine import VALUE as c\n"
        "print(a, b, c, paralab.__version__)\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.split()[:3]) == (0, ["mine"] * 3), done.stderr


def test_only_paralab_is_installed(tmp_path: Path) -> None:
    names = ("models", "benchmarks", "parallel", "ds_configs", "tests")
    code = f"""
import importlib.util, paralab
{WITHOUT_FORMER_NAMES}
print([name for name in {names} if importlib.util.find_spec(name)])
"""
    assert run(code, tmp_path, "-I") == "[]"


def test_launch_knows_the_former_names_where_nothing_else_has_them(tmp_path: Path) -> None:
    """It adds a finder, the last one, by a line that Python runs at its start."""
    script = (ROOT / "launch.sh").read_text().split("line = (")[1].split("\n)\n")[0]
    line = "".join(ast.literal_eval(f"({script})")) % str(ROOT)
    line = f"{WITHOUT_FORMER_NAMES}def start(): exec({line!r})\nstart()\n"  # as `site` runs it
    code = f"{line}import benchmarks, parallel, paralab; print(benchmarks.__file__, parallel is paralab)"
    assert run(code, tmp_path) == f"{ROOT / 'benchmarks' / '__init__.py'} True"
    (tmp_path / "benchmarks").mkdir()  # a plain folder of the user's own comes first
    assert run(f"{line}import benchmarks; print(list(benchmarks.__path__))", tmp_path) == f"['{tmp_path}/benchmarks']"


def test_a_checkout_answers_to_the_name_of_its_folder() -> None:
    """Two names, one package: what either of them registers the other one knows."""
    code = "import parallel, paralab; from parallel import axes; print(parallel is paralab, axes is paralab.axes)"
    assert run(code, ROOT) == "True True"


def test_a_checkout_that_is_not_installed_starts_from_its_file(tmp_path: Path) -> None:
    """Also its own modules are taken, where another checkout is installed."""
    for name in ("parallel", "models", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    code = f"""
import runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.argv = ["run.py", "--help"]
runpy.run_path({str(tmp_path / "benchmarks" / "run.py")!r}, run_name="__main__")
"""
    assert "usage: paralab run" in run(code, tmp_path)


def test_every_folder_of_code_is_a_package_of_the_installation() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    packages = setup["options"]["packages"].split()
    found = {
        ".".join(["paralab", *path.parent.relative_to(ROOT).parts]).replace("paralab.parallel", "paralab")
        for folder in ("parallel", "models", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert packages == sorted(packages)
    assert found == {name for name in packages if "ds_configs" not in name}
