"""Docstrings say what a caller cannot see in the signature: which errors come, and which shapes tensors have.

Read are the public functions and methods of `parallel`, `models` and `benchmarks`. An error counts where a function
raises it itself, and is said by its own name or that of a class that it derives from. What `__init__` and
`__post_init__` raise or take may stand in the docstring of their class.
"""

import argparse
import ast
import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from paralab import errors

ROOT = Path(__file__).resolve().parents[2]
SHARE = 0.95
Function = ast.FunctionDef | ast.AsyncFunctionDef

# Not those that end the program or say that a line is never reached.
ERRORS: dict[str, type] = {
    name: found
    for module in (builtins, errors, argparse)
    for name, found in vars(module).items()
    if name.endswith("Error") and isinstance(found, type) and name not in ("AssertionError", "NotImplementedError")
}
_CALLED = ("__init__", "__post_init__", "__call__", "__enter__")  # not the attribute protocol and other fixed forms
_TOO_WIDE = {"Exception", "BaseException", "object"}

_TENSOR = re.compile(r"\bTensors?\b")
# "(batch, seq_len, 3 hidden)", "(..., hidden)", "(n,)", "()", or the word, as in "of any shape"
_SHAPE = re.compile(r"\((?:[\w'/*+. -]+(?:, [\w'/*+. -]+)+|[\w'/*+ -]+,|)\)|\bshapes?\b")


@dataclass(frozen=True)
class Documented:
    """A public function, what a caller reads of it, and the errors that it raises."""

    place: str
    function: Function
    text: str
    errors: frozenset[str]


def documented(source: str, module: str = "m") -> Iterator[Documented]:
    """Yield the public functions and methods of a module; those inside functions are nobody else's."""
    tree = ast.parse(source)
    makers = {node.name: _named(node.returns) for node in ast.walk(tree) if isinstance(node, Function)}

    def within(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[Documented]:
        for node in parent.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from within(node, f"{prefix}.{node.name}")
            elif isinstance(node, Function) and (not node.name.startswith("_") or node.name in _CALLED):
                of_class = ast.get_docstring(parent) if node.name in ("__init__", "__post_init__") else None
                text = "\n".join(filter(None, (of_class, ast.get_docstring(node))))
                named = frozenset(name for name in _raised(node.body, makers) if name in ERRORS)
                yield Documented(f"{prefix}.{node.name}", node, text, named)

    yield from within(tree, module)


def _raised(body: list[ast.stmt], makers: dict[str, str]) -> Iterator[str]:
    """Yield the name of each error that leaves a body: a class, or what a function that makes one returns."""
    for node in body:
        if isinstance(node, ast.Raise) and node.exc is not None:
            name = _named(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
            yield makers.get(name) or name
        elif isinstance(node, ast.Try):
            caught = {_named(each) for handler in node.handlers for each in _types(handler)}
            yield from (name for name in _raised(node.body, makers) if not caught & _bases(name))
            for part in (*(handler.body for handler in node.handlers), node.orelse, node.finalbody):
                yield from _raised(part, makers)
        elif not isinstance(node, (Function, ast.ClassDef)):
            inner = [*ast.iter_child_nodes(node)]
            yield from _raised([each for each in inner if isinstance(each, ast.stmt)], makers)
            for case in (each for each in inner if isinstance(each, ast.match_case)):
                yield from _raised(case.body, makers)


def _types(handler: ast.ExceptHandler) -> list[ast.expr | None]:
    return [*handler.type.elts] if isinstance(handler.type, ast.Tuple) else [handler.type]


def _bases(name: str) -> set[str]:
    """Return the names of an error and of what it derives from."""
    return {each.__name__ for each in ERRORS[name].__mro__} if name in ERRORS else {name}


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
    names = set(re.findall(r"\w+", said)) - _TOO_WIDE
    return all(names & _bases(name) for name in found.errors)


def says_shapes(found: Documented) -> bool:
    """Say whether a docstring gives a shape."""
    return _SHAPE.search(found.text) is not None


@pytest.fixture(scope="module")
def everything() -> list[Documented]:
    """The public functions of all modules."""
    paths = [path for folder in ("parallel", "models", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    dotted = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return [found for path, module in dotted.items() for found in documented(path.read_text("utf-8"), module)]


def require(of: int, missing: list[str], what: str) -> None:
    """Fail with the share and the places that lack it, unless enough functions say it."""
    share = 1 - len(missing) / of
    assert share >= SHARE, f"{share:.0%} of {of} say {what}, {SHARE:.0%} are needed; not:\n" + "\n".join(missing)


def test_functions_that_raise_say_so(everything: list[Documented]) -> None:
    raising = [found for found in everything if found.errors]
    missing = [f"{found.place}: {', '.join(sorted(found.errors))}" for found in raising if not says_errors(found)]
    require(len(raising), missing, "what they raise")


def test_functions_of_tensors_give_shapes(everything: list[Documented]) -> None:
    of_tensors = [found for found in everything if takes_tensors(found.function)]
    missing = [found.place for found in of_tensors if not says_shapes(found)]
    require(len(of_tensors), missing, "which shapes their tensors have")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    raise LayoutError('no')", {"LayoutError"}),
        ("def f():\n    with x:\n        if y:\n            raise errors.DataError('no') from None", {"DataError"}),
        ("def f():\n    raise _refusal()\ndef _refusal() -> UsageError: ...", {"UsageError"}),
        ("def f():\n    try:\n        raise FitError\n    except UsageError:\n        raise KeyError", {"KeyError"}),
        ("def f():\n    def g():\n        raise DataError\n    raise", set()),
        ("def _f():\n    raise DataError", None),
        ("class A:\n    '''Raises: DataError.'''\n    def __init__(self):\n        raise DataError", {"DataError"}),
    ],
)
def test_errors_are_found(source: str, expected: set[str] | None) -> None:
    assert [set(found.errors) for found in documented(source)] == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("text", "errors_said", "shapes_said"),
    [
        ("Raises: UsageError for (batch, 3 hidden).", True, True),
        ("Raise LayoutError with x (..., hidden).", True, True),
        ("Raises: ParalabError for a tensor (of the input).", True, False),
        ("LayoutError (or none) for tensors (n,)", False, True),
        ("Raises: DataError for a loss ().", False, True),
        ("Raises: Exception for one shapely thing", False, False),
    ],
)
def test_what_a_docstring_says(text: str, errors_said: bool, shapes_said: bool) -> None:
    (found,) = documented(f"def f(x: Tensor):\n    '''{text}'''\n    raise LayoutError")
    assert (says_errors(found), says_shapes(found)) == (errors_said, shapes_said) and takes_tensors(found.function)
