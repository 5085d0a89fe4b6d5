"""Docstrings say what a caller cannot see in the signature: which errors come, and of which shape tensors are.

Read are the public functions and methods of `parallel`, `models` and `benchmarks`. An error counts where a function
raises it itself; what `__init__` and `__post_init__` raise stands in the docstring of their class, if not in their own.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from parallel import errors

ROOT = Path(__file__).resolve().parents[2]
SHARE = 0.95
Function = ast.FunctionDef | ast.AsyncFunctionDef

# Of builtins, not what ends the program or says that a line is never reached.
ERRORS = {name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, Exception)}
ERRORS |= {name for name in vars(builtins) if name.endswith("Error")} - {"AssertionError", "NotImplementedError"}
ERRORS |= {"ArgumentTypeError"}

_TENSOR = re.compile(r"\bTensors?\b")
# "(batch, seq_len, 3 hidden)", "(n,)", "()", or the word, as in "of any shape"
_SHAPE = re.compile(r"\((?:[\w'/* +-]+(?:, [\w'/* .+-]+)+|[\w'/* +-]+,|)\)|\bshapes?\b|\bscalars?\b")


@dataclass(frozen=True)
class Documented:
    """A public function, and the docstring that a caller reads: its own, after that of its class for `__init__`."""

    place: str
    function: Function
    text: str
    errors: frozenset[str]


def documented(source: str, module: str = "m") -> Iterator[Documented]:
    """Yield the public functions and methods of a module; those inside functions are no one else's."""
    tree = ast.parse(source)
    makers = {node.name: _named(node.returns) for node in ast.walk(tree) if isinstance(node, Function)}

    def within(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[Documented]:
        for node in parent.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from within(node, f"{prefix}.{node.name}")
            elif isinstance(node, Function) and (not node.name.startswith("_") or node.name.endswith("__")):
                of_class = ast.get_docstring(parent) if node.name in ("__init__", "__post_init__") else None
                text = "\n".join(filter(None, (of_class, ast.get_docstring(node))))
                raised = frozenset(name for name in _raised(node, makers) if name in ERRORS)
                yield Documented(f"{prefix}.{node.name}", node, text, raised)

    yield from within(tree, module)


def _raised(function: Function, makers: dict[str, str]) -> Iterator[str]:
    """Yield the name of each error that a function raises: a class, or what a function that makes one returns."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (Function, ast.Lambda, ast.ClassDef)):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            name = _named(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
            yield makers.get(name) or name
        pending.extend(ast.iter_child_nodes(node))


def _named(node: ast.expr | None) -> str:
    """Return the last part of a dotted name, or nothing for another expression."""
    return ast.unparse(node).rpartition(".")[2] if isinstance(node, (ast.Name, ast.Attribute)) else ""


def takes_tensors(function: Function) -> bool:
    """Say whether an annotation of a function names tensors."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    annotations = [each.annotation for each in every if each is not None] + [function.returns]
    return any(each is not None and _TENSOR.search(ast.unparse(each)) for each in annotations)


def says_errors(found: Documented) -> bool:
    """Say whether each error that a function raises is named after the word "Raise" or "Raises"."""
    _, _, said = found.text.partition("Raise")
    return all(re.search(rf"\b{name}\b", said) for name in found.errors)


def says_shapes(found: Documented) -> bool:
    """Say whether a docstring gives a shape."""
    return _SHAPE.search(found.text) is not None


def everything() -> list[Documented]:
    """Return the public functions of all modules."""
    paths = [path for folder in ("parallel", "models", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [
        found
        for path in paths
        for found in documented(path.read_text("utf-8"), ".".join(path.relative_to(ROOT).with_suffix("").parts))
    ]


def require(share: float, of: list[Documented], missing: list[str], what: str) -> None:
    """Fail with the share and the missing places unless enough functions say it."""
    got = 1 - len(missing) / len(of)
    assert got >= share, f"{got:.0%} of {len(of)} say {what}, {share:.0%} are needed:\n" + "\n".join(missing)


def test_functions_that_raise_say_so() -> None:
    raising = [found for found in everything() if found.errors]
    missing = [f"{found.place}: {', '.join(sorted(found.errors))}" for found in raising if not says_errors(found)]
    require(SHARE, raising, missing, "what they raise")


def test_functions_of_tensors_give_shapes() -> None:
    with_tensors = [found for found in everything() if takes_tensors(found.function)]
    missing = [found.place for found in with_tensors if not says_shapes(found)]
    require(SHARE, with_tensors, missing, "of which shape their tensors are")
