"""The rooms (folders) of the code, read from the imports of all modules, and the flow of one step through them.

`python -m paralab.benchmarks.documents architecture` prints the page, `architecture.svg` in its place the picture. A
room is a folder or a file of `parallel`, or a package beside it, and imports only from those below
(`tests/unit/test_floors.py`).
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from paralab.benchmarks.documents.drawing import Box, draw
from paralab.benchmarks.documents.flow import FLOW, FLOW_HEAD

ROOT = Path(__file__).resolve().parents[2]

# From top to bottom. `cli` is the door: it knows the name of every command.
FLOORS = (
    "cli",
    "benchmarks.documents",
    "benchmarks.claims",
    "benchmarks.planner",
    "benchmarks.sends_less",
    "benchmarks.watch",
    "benchmarks",
    "benchmarks.report",
    "commands",
    "library",
    "inference",
    "training",
    "weights",
    "convex",
    "checkpoint",
    "parity",
    "running",
    "records",
    "measure",
    "planning",
    "engines",
    "axes",
    "nodes",
    "curation",
    "data",
    "processes",
    "options",
    "pages",
    "console",
    "layout",
    "models",
    "errors",
)
_TASK = re.compile(r"(paralab(?:\.\w+)+):\w+")

HEAD = """\
# Architecture

Made by `python -m paralab.benchmarks.documents architecture` from the code itself; a test fails when it is stale.

The code is in rooms: the folders of `parallel`, and the packages beside it. A room imports only from rooms below it;
`tests/unit/test_floors.py` reads every import. In the picture an arrow goes from a room to one that it imports from.
Left out are arrows that say nothing new, because a longer way of arrows leads there as well: `{example}` imports from
{imports} of the {rooms} rooms below it.

![The rooms of the code on their floors, from the command line down to the errors](architecture.svg)

| room | what it is for | modules |
|---|---|---|"""


# --- what is imported from where


@cache
def modules(root: Path = ROOT) -> Mapping[str, Path]:
    """Return the file of every module, by its dotted name; a package is its `__init__.py`."""
    found = {}
    for folder in ("parallel", "models", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            _, *inside = path.relative_to(root).with_suffix("").parts
            name = ".".join(["paralab", *([folder] if folder != "parallel" else []), *inside])
            found[name.removesuffix(".__init__")] = path
    return found


def room_of(module: str) -> str:
    """Return the room of a module: the package of `paralab` that it is in; `paralab` itself is the library's face."""
    _, first, second, *_ = [*module.split("."), "", ""]
    return nested if (nested := f"{first}.{second}") in FLOORS else first or "library"


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


@cache
def uses() -> Mapping[str, set[str]]:
    """Return the rooms that each room imports from."""
    files = modules()
    found: dict[str, set[str]] = {room: set() for room in FLOORS}
    for name, path in files.items():
        others = {room_of(other) for _, other in imported(parsed(path.read_text(encoding="utf-8")), set(files))}
        found[room_of(name)] |= others - {room_of(name)}
    return found


# --- the picture


def picture() -> str:
    """Return the rooms on their floors as an SVG."""
    used = uses()
    below = [[_box(room) for room in floor] for floor in on_floors(used)]
    arrows = [(room, other) for room, others in without_shortcuts(used).items() for other in others]
    return draw(below, arrows, title="The rooms of the code, and which imports from which")


def on_floors(used: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the rooms in the order of `FLOORS`, where neighbours of which none imports from another share a floor."""
    floors: list[list[str]] = [[]]
    for room in FLOORS:
        if any(room in used[above] for above in floors[-1]):
            floors.append([])
        floors[-1].append(room)
    return floors


def without_shortcuts(used: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return what each room imports from, without rooms that a longer way leads to (the transitive reduction)."""
    reached: dict[str, set[str]] = {}
    for room in reversed(FLOORS):
        reached[room] = used[room].union(*(reached[other] for other in used[room]))
    return {room: used[room].difference(*(reached[other] for other in used[room])) for room in FLOORS}


def _box(room: str) -> Box:
    count = _count(room)
    return Box(room, _purpose(room).replace("`", ""), f"{count} module{'' if count == 1 else 's'}")


def _count(room: str) -> int:
    return sum(room_of(name) == room and name != "paralab" for name in modules())


def _path(room: str) -> str:
    files = modules()
    path = files[f"paralab.{room}"]
    return str((path.parent if path.name == "__init__.py" else path).relative_to(ROOT))


def _purpose(room: str) -> str:
    """Return the first sentence that a room says of itself."""
    files = modules()
    path = files[f"paralab.{room}"]
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=\.)\s", " ".join(text.partition("\n\n")[0].split()))[0]


# --- the page


def page() -> str:
    """Return the page: the picture, a table of the rooms, and the way of one step."""
    used = uses()
    example = max(FLOORS, key=lambda room: len(used[room]))
    lines = [HEAD.format(example=example, imports=len(used[example]), rooms=len(FLOORS) - 1 - FLOORS.index(example))]
    lines += [f"| [`{_path(room)}`](../{_path(room)}) | {_purpose(room)} | {_count(room)} |" for room in FLOORS]
    lines += ["", FLOW_HEAD]
    for number, stage in enumerate(FLOW, 1):
        lines.append(f"| {number} | {stage.what} | {_where(stage.functions)} | {stage.gives} |")
    return "\n".join(lines) + "\n"


def _where(functions: Sequence[str]) -> str:
    """Name functions with a link to their file. Raises: ValueError for one that is not there."""
    cells = []
    for function in functions:
        path, _, name = function.partition(":")
        if not (ROOT / path).exists() or name not in defined(ROOT / path):
            raise ValueError(f"{function} is on the way of one step, and is not there: correct FLOW in {__name__}")
        cells.append(f"[`{name}`](../{path})")
    return ", ".join(cells)


def defined(path: Path) -> set[str]:
    """Return the functions of a module, and the methods of its classes as `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found
