"""Count the lines of code that one model costs a user under each library and layout: the scripts of examples/lines.

    python -m paralab.benchmarks.lines

prints the table of docs/library.md; a test fails when it is stale. All scripts train the model of
examples/lines/net.py, which is counted for none of them, clip its gradient and print the loss of the global batch. What
is counted: lines of code, formatted by ruff, without blank lines, comments, docstrings and what only CPUs need.
"""

import ast
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "examples" / "lines"
LIBRARIES = {"paralab": "paralab", "accelerate": "Accelerate", "fabric": "Lightning Fabric", "deepspeed": "DeepSpeed"}
LAYOUTS = {"ddp": "data parallel", "zero3": "ZeRO-3", "tensor": "tensor", "pipeline": "pipeline"}
ON_CPUS = "# on CPUs alone"  # ends a line that a program on GPUs does not have


def count(text: str) -> int:
    """Return how many lines of a program hold code, apart from docstrings and what CPUs alone need."""
    lines: set[int] = set()
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt):
            lines |= _lines_of(node)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, False) is not None:
            docstrings |= _lines_of(node.body[0])
    code = {number: line.strip() for number, line in enumerate(text.splitlines(), start=1)}
    counted = (code[number] for number in lines - docstrings)
    return sum(bool(line) and not line.startswith("#") and not line.endswith(ON_CPUS) for line in counted)


def _lines_of(node: ast.stmt) -> set[int]:
    return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))


def table() -> str:
    """Return the table, a row for each library; a dash stands where there is no script."""
    rows = [f"| library | {' | '.join(LAYOUTS.values())} |", "|---" * (len(LAYOUTS) + 1) + "|"]
    for library, title in LIBRARIES.items():
        cells = (_cell(SCRIPTS / f"{library}_{layout}.py") for layout in LAYOUTS)
        rows.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(script: Path) -> str:
    return f"[{count(script.read_text())}](../examples/lines/{script.name})" if script.is_file() else "–"


if __name__ == "__main__":
    print(table())
