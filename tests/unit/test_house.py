"""The packaging agrees with the code: what is imported is declared, what is declared is pinned, the scripts run."""

import ast
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.conftest import QUICK

ROOT = Path(__file__).resolve().parents[2]
OWN = {"paralab", "parallel", "tests"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
# what a dependency of ours always brings along
BROUGHT_ALONG = {"packaging", "setuptools"}


def requirements(*extras: str) -> dict[str, Requirement]:
    """Return what setup.cfg requires, by canonical name, with the extras named."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    blocks = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in extras)]
    parsed = [Requirement(line) for block in blocks for line in block.strip().splitlines()]
    return {canonicalize_name(item.name): item for item in parsed if item.name != "paralab"}


def pins() -> dict[str, str]:
    """Return the versions of constraints.txt that hold for this interpreter, by canonical name."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    parsed = [Requirement(line) for line in lines if line]
    return {
        canonicalize_name(item.name): str(item.specifier).removeprefix("==")
        for item in parsed
        if item.marker is None or item.marker.evaluate()
    }


def imported(folder: str) -> dict[str, str]:
    """Return the outside modules that the Python files of a folder import, with one file that does."""
    found: dict[str, str] = {}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            found.update({name.split(".")[0]: str(path.relative_to(ROOT)) for name in names})
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names and name not in OWN}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("models", ()),
        ("parallel", ("plot", "tensorboard", "trackio", "dedup", "optim8bit")),
        ("benchmarks", ("plot", "tensorboard")),
        ("tests", ("test", "plot", "tensorboard")),
    ],
)
def test_every_import_is_declared(folder: str, extras: tuple[str, ...]) -> None:
    declared = set(requirements(*extras)) | BROUGHT_ALONG
    distributions = metadata.packages_distributions()
    missing = {
        name: path
        for name, path in imported(folder).items()
        if not declared & {canonicalize_name(found) for found in distributions.get(name, [name])}
    }
    assert missing == {}, "declare these in setup.cfg and renew constraints.txt"


def test_every_requirement_is_pinned_within_its_range() -> None:
    pinned = pins()
    for name, item in requirements("test", "plot", "tensorboard", "dev").items():
        if item.marker is None or item.marker.evaluate():
            assert item.specifier.contains(pinned[name]), name


def test_what_is_installed_is_what_is_pinned() -> None:
    pinned = pins()
    for name in requirements("test"):
        if name in pinned:
            assert metadata.version(name).split("+")[0] == pinned[name], f"{name}: run ./launch.sh check"


def test_versions_of_python_are_said_once() -> None:
    """The classifiers name exactly what python_requires allows, and launch.sh and ruff go by the same."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    allowed = SpecifierSet(setup["options"]["python_requires"])
    supported = [f"3.{minor}" for minor in range(40) if f"3.{minor}" in allowed]
    named = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    assert named == supported and len(supported) > 1
    launch = (ROOT / "launch.sh").read_text()
    assert f"(3, {supported[0][2:]}) <= sys.version_info < (3, {int(supported[-1][2:]) + 1})" in launch
    assert " ".join(f"python{version}" for version in reversed(supported)) in launch
    assert f'target-version = "py{supported[0].replace(".", "")}"' in (ROOT / "ruff.toml").read_text()


@pytest.mark.parametrize("script", ["launch.sh", "check", ".ci/run", "examples/performance_gate.sh"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=10)


def test_the_quick_tests_are_there() -> None:
    names = QUICK.split()
    assert names == sorted(set(names))
    paths = [ROOT / "tests" / "unit" / Path(name).with_name(f"test_{Path(name).name}.py") for name in names]
    assert [path for path in paths if not path.is_file()] == []


def test_the_unit_tests_mirror_the_packages() -> None:
    rooms = {
        path.parent.name for folder in ("parallel", "models", "benchmarks") for path in ROOT.glob(f"{folder}/**/*.py")
    }
    folders = {path.parent.name for path in (ROOT / "tests" / "unit").glob("*/test_*.py")}
    assert folders <= rooms
    assert all((ROOT / "tests" / "unit" / folder / "__init__.py").is_file() for folder in folders)


def test_the_packages_say_and_ship_that_they_are_typed() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert "py.typed" in setup["options.package_data"]["*"]
    assert all((ROOT / package / "py.typed").is_file() for package in ("parallel", "models", "benchmarks"))


def test_a_commit_is_checked_by_the_same_script() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (hook,) = repository["hooks"]
    assert (repository["repo"], hook["entry"], hook["language"]) == ("local", "./check", "system")


def test_launch_help_names_every_door(tmp_path: Path) -> None:
    done = subprocess.run([str(ROOT / "launch.sh"), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(door in done.stdout for door in ("./launch.sh test", "./launch.sh check", "./launch.sh COMMAND"))


def test_launch_refuses_an_interpreter_that_does_not_run(tmp_path: Path) -> None:
    for name in ("launch.sh", "setup.cfg", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(tmp_path / "no-such-python")}
    done = subprocess.run(
        ["bash", str(tmp_path / "launch.sh"), "test"], env=environment, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 2
    assert "no-such-python is not a Python 3.11, 3.12 or 3.13" in done.stderr
    assert not (tmp_path / ".venv").exists()
