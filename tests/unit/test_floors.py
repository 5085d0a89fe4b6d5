"""The floors of the house: a room imports only from rooms below it, and the list of exceptions stays empty.

Read are the imports of every module, also those inside functions, and strings of the form "module:function", by which
tasks are handed to other processes. What stands under `if __name__ == "__main__"` is a program of its own and not a
part of its room.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From top to bottom. `cli` is the door: it knows the name of every command.
FLOORS = (
    "cli",
    "benchmarks",
    "commands",
    "inference",
    "training",
    "weights",
    "checkpoint",
    "parity",
    "records",
    "measure",
    "plan",
    "engines",
    "axes",
    "nodes",
    "data",
    "processes",
    "options",
    "console",
    "layout",
    "models",
    "errors",
)
_TASK = re.compile(r"((?:parallel|models|benchmarks)(?:\.\w+)+):\w+")


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return the file of every module, by its dotted name; a package is its `__init__.py`."""
    found = {}
    for package in ("parallel", "models", "benchmarks"):
        for path in (root / package).rglob("*.py"):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def room_of(module: str) -> str:
    """Return the room of a module: its folder in `parallel`, else its package; `parallel` itself is on the ground."""
    package, _, rest = module.partition(".")
    return package if package != "parallel" else rest.partition(".")[0] or "errors"


def imported(tree: ast.AST, known: set[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, module of ours) for all that a module imports, and for the tasks that it names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports say the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (task := _TASK.fullmatch(node.value)):
            names = [task[1]]
        else:
            continue
        for name in names:
            if (module := _known(name, known)) is not None:
                yield node.lineno, module


def _known(name: str, known: set[str]) -> str | None:
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def parsed(source: str) -> ast.Module:
    """Return the tree of a module without what it does as a program."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.dump(node.test))]
    return tree


def upward(module: str, source: str, known: set[str]) -> Iterator[str]:
    """Yield each import of a module from a room above its own."""
    own = FLOORS.index(room_of(module))
    for line, other in imported(parsed(source), known):
        if FLOORS.index(room_of(other)) < own:
            yield f"{module}:{line} ({room_of(module)}) takes from {other} ({room_of(other)}), which is above it"


def test_no_room_takes_from_one_above_it() -> None:
    files = modules()
    known = set(files)
    assert [line for name, path in files.items() for line in upward(name, path.read_text(), known)] == []


@pytest.mark.parametrize(
    "source",
    [
        "from parallel.commands.verify import main",
        "def late():\n    import benchmarks.run",
        "from parallel import cli",
        'launch("benchmarks.run_worker:measure")',
    ],
)
def test_an_import_from_above_is_seen(source: str) -> None:
    assert list(upward("parallel.layout.layout", source, set(modules())))


def test_every_folder_is_on_a_floor_and_every_floor_is_a_folder() -> None:
    """A new room has to be given its place."""
    rooms = {room_of(name) for name in modules()}
    assert rooms == set(FLOORS)


def test_the_root_of_the_package_holds_the_door_and_the_errors_alone() -> None:
    assert {path.name for path in (ROOT / "parallel").glob("*.py")} == {"__init__.py", "cli.py", "errors.py"}
