"""Predict step time and memory of training configurations on machines that you need not have.

    paralab predict CASES.csv --out PREDICTIONS.csv

A case is a row: model, cluster, layout, recipe. docs/planner.md lists its columns, says how predictions are made and
how far off they were on published measurements. A row that cannot be predicted is reported with its line, and the
others are predicted.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.commands.device_options import DeviceParser, devices
from paralab.console.outputs import check_writable, write_whole
from paralab.errors import ParalabError, UsageError
from paralab.options.arguments import Parser
from paralab.planning import cases, checked, hardware
from paralab.planning.cases import Row
from paralab.planning.hardware import Device

if TYPE_CHECKING:
    from paralab.planning.settle import Settled

HEADER = ["case_id", "step_time_s", "mfu", "memory_gib", "fits", "bound", "assumed", "error"]


def main(argv: Sequence[str]) -> int:
    """Predict the cases of a file. Returns: 0, or 1 where a row could not be predicted."""
    options = _parser().parse_args(list(argv))
    source = Path(options.cases)
    if options.out:
        check_writable(Path(options.out), inputs=[source])
    own = devices(options.device or [])
    default = hardware.find(options.gpu, own).gpu
    rows = _with_vocabulary(cases.read(source), options.tokenizer)
    settled, problems = settle_all(rows, own, default)
    content = cases.write(HEADER, predictions(rows, settled, problems))
    if options.out:
        write_whole(Path(options.out), content)
    else:
        sys.stdout.write(content.decode())
    for said in cases.repeated(rows):
        print(f"{source}, {said}", file=sys.stderr)
    for row in rows:
        if row.line in problems:
            print(f"{source}, line {row.line}: {problems[row.line]}", file=sys.stderr)
    where = f" in {options.out}" if options.out else ""
    print(f"predicted {len(settled)} of {len(rows)} cases{where}\n{checked.sentence()}", file=sys.stderr)
    return ParalabError.exit_status if problems else 0


def _with_vocabulary(rows: list[Row], tokenizer: str | None) -> list[Row]:
    """Give rows that leave `vocab` empty the vocabulary of a tokenizer. Raises: DataError where it cannot be read."""
    if tokenizer is None:
        return rows
    from paralab.data import get_tokenizer

    vocabulary = get_tokenizer(tokenizer).vocab_size
    return [replace(row, raw={"vocab": vocabulary, **row.raw}) for row in rows]


def _parser() -> Parser:
    parser = DeviceParser(prog="paralab predict", description=__doc__)
    parser.add_argument("cases", metavar="CASES.csv", help="File of cases to predict, one in each row")
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="Tokenizer whose vocabulary rows without one get: gpt2, bytes, or a tokenizer.json",
    )
    parser.add_argument("--out", metavar="FILE", help="Write predictions to this CSV file (default: print them)")
    parser.add_devices(
        gpu="Device of rows that name none, or the file of one that was measured",
        device="Describe a device of your own: a JSON file, or figures joined by commas, such as "
        "gpu=NAME,peak_tflops=N: memory_gib and memory_gbyte_per_s are needed too (may be given several times)",
    )
    return parser


def settle_all(rows: Sequence[Row], own: Mapping[str, Device], gpu: str) -> tuple[dict[int, "Settled"], dict[int, str]]:
    """Return the rows that describe a case, by line, and what is wrong with each of the others, by line."""
    from paralab.planning.settle import settle  # numpy, which --help need not wait for

    settled: dict[int, Settled] = {}
    problems: dict[int, str] = {}
    for row in rows:
        try:
            if row.error is not None:
                raise UsageError(row.error)
            settled[row.line] = _checked(settle(row.raw, own, gpu))
        except UsageError as error:
            problems[row.line] = str(error)
    return settled, problems


def _checked(settled: "Settled") -> "Settled":
    """Return a case. Raises: UsageError where its device was measured and paralab does not train it."""
    if settled.device.measured is not None:
        from paralab.planning.measured import imagined

        imagined.of_case(settled)
    return settled


def predictions(rows: Sequence[Row], settled: Mapping[int, "Settled"], problems: Mapping[int, str]) -> list[list[str]]:
    """Return the cells of each row, in the order of `HEADER`: empty where nothing could be predicted."""
    from paralab.planning.predict import predict

    cells: dict[int, list[str]] = {}
    if settled:
        result = predict(list(settled.values()))
        for i, (line, case) in enumerate(settled.items()):
            assumed = "; ".join(f"{name}={_text(value)}" for name, value in case.assumed.items())
            numbers = [f"{value[i]:.6g}" for value in (result.step_time_s, result.mfu, result.memory_gib)]
            cells[line] = [*numbers, _text(bool(result.fits[i])), str(result.bound[i]), assumed, ""]
    return [[row.case_id, *cells.get(row.line, [""] * 6 + [problems.get(row.line, "")])] for row in rows]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
