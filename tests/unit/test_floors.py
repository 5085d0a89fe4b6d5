"""The floors of the house: a room imports only from rooms below it, and the list of exceptions stays empty.

Read are the imports of every module, also those inside functions, and strings of the form "module:function", by which
tasks are handed to other processes. What stands under `if __name__ == "__main__"` is a program of its own and not a
part of its room.
"""

from collections.abc import Iterator

import pytest

from paralab.benchmarks.documents.architecture import FLOORS, ROOT, imported, modules, parsed, room_of


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
        "from paralab.commands.verify import main",
        "def late():\n    import paralab.benchmarks.run",
        "from paralab import cli",
        'launch("paralab.benchmarks.run_worker:measure")',
    ],
)
def test_an_import_from_above_is_seen(source: str) -> None:
    assert list(upward("paralab.layout.layout", source, set(modules())))


def test_every_folder_is_on_a_floor_and_every_floor_is_a_folder() -> None:
    """A new room has to be given its place."""
    rooms = {room_of(name) for name in modules()}
    assert rooms == set(FLOORS)


def test_the_root_of_the_package_holds_the_door_and_the_errors_alone() -> None:
    assert {path.name for path in (ROOT / "parallel").glob("*.py")} == {"__init__.py", "cli.py", "errors.py"}
