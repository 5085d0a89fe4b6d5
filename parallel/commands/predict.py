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
from typing import Any

from paralab.console.outputs import check_writable, write_whole
from paralab.errors import ConfigError, UsageError
from paralab.options.arguments import Parser
from paralab.planning import cases, checked, hardware
from paralab.planning.cases import Row
from paralab.planning.hardware import Device
from paralab.planning.settle import DEFAULT_GPU, Settled, settle

HEADER = ["case_id", "step_time_s", "mfu", "memory_gib", "fits", "bound", "assumed", "error"]
FAILED = 1  # the exit status where a row could not be predicted


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
    for row in rows:
        if row.line in problems:
            print(f"{source}, line {row.line}: {problems[row.line]}", file=sys.stderr)
    where = f" in {options.out}" if options.out else ""
    print(f"predicted {len(settled)} of {len(rows)} cases{where}\n{checked.sentence()}", file=sys.stderr)
    return FAILED if problems else 0


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
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        default=DEFAULT_GPU,
        help=f"Device of rows that name none, or the file of one that was measured (default: {DEFAULT_GPU})",
    )
    parser.add_argument(
        "--device",
        metavar="FILE",
        action="append",
        help="Describe a device of your own: a JSON file, or figures joined by commas, such as "
        "gpu=NAME,peak_tflops=N: memory_gib and memory_gbyte_per_s are needed too (may be given several times)",
    )
    parser.add_figures()
    return parser


FIGURES = {
    "peak_tflops": "Dense peak in 16 bits, TFLOP/s, of a device of your own, or of --gpu if it differs",
    "memory_gib": "Memory of that device that a program can use, GiB",
    "memory_gbyte_per_s": "Bandwidth of that memory, GB/s",
    "link_gbyte_per_s": "Link of one device inside a node, one direction, GB/s",
    "network_gbit_per_s": "Network of one device between nodes, one direction, Gbit/s",
}
_NEEDED = ("peak_tflops", "memory_gib", "memory_gbyte_per_s")


class DeviceParser(Parser):
    """A parser in which figures of a datasheet describe the device: they become one more `--device`, which is taken."""

    def add_figures(self) -> None:
        """Add the options of the figures."""
        for name, meaning in FIGURES.items():
            self.add_argument(f"--{name.replace('_', '-')}", metavar="N", help=meaning)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the options. Raises: UsageError; ConfigError for too few figures of a device that is not known."""
        options = super().parse_args(args, namespace)
        given = {name: value for name in FIGURES if (value := getattr(options, name)) is not None}
        if not given:
            return options
        named = any(word == "--gpu" or word.startswith("--gpu=") for word in args)
        if named and (known := hardware.is_known(options.gpu)):
            given, name = {"like": known, **given}, f"{known} (changed)"
        elif missing := [name for name in _NEEDED if name not in given]:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
            first = f"--{next(iter(given)).replace('_', '-')}"
            raise ConfigError(f"{first} without {flags}: give all figures of the device, or --gpu with one it is like")
        else:
            name = options.gpu if named else "own"
        words = ",".join(f"{key}={value}" for key, value in {"gpu": name, **given}.items())
        options.device, options.gpu = [*(options.device or []), words], name
        return options


def devices(words: Sequence[str]) -> dict[str, Device]:
    """Return the devices that `--device` describes, by name. Raises: ConfigError for what describes none."""
    found: dict[str, Device] = {}
    for word in words:
        if "=" in word and not Path(word).exists():
            pairs = (part.partition("=") for part in word.split(","))
            values = {key.strip(): _value(text.strip()) for key, _, text in pairs}
            device = hardware.describe(values, where="--device")
            found[device.gpu] = device
        elif not Path(word).is_file():
            raise ConfigError(f"--device {word}: there is no such file: give a JSON file, or name=value,name=value")
        else:
            found |= hardware.from_json(Path(word))
    return found


def _value(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def settle_all(rows: Sequence[Row], own: Mapping[str, Device], gpu: str) -> tuple[dict[int, Settled], dict[int, str]]:
    """Return the rows that describe a case, by line, and what is wrong with each of the others, by line."""
    settled: dict[int, Settled] = {}
    problems: dict[int, str] = {}
    for row in rows:
        try:
            if row.error is not None:
                raise UsageError(row.error)
            settled[row.line] = _checked(settle(row.raw, own, gpu), row)
        except UsageError as error:
            problems[row.line] = str(error)
    return settled, problems


def _checked(settled: Settled, row: Row) -> Settled:
    """Return a case. Raises: UsageError where its device was measured and paralab does not train it."""
    if settled.device.measured is not None:
        from paralab.planning.measured import planned

        planned.of_case(settled)
    return settled


def predictions(rows: Sequence[Row], settled: Mapping[int, Settled], problems: Mapping[int, str]) -> list[list[str]]:
    """Return the cells of each row, in the order of `HEADER`: empty where nothing could be predicted."""
    from paralab.planning.predict import predict  # numpy, which a refused file need not wait for

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
