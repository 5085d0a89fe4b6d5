"""Find the fastest layouts of a model on machines that you need not have: every legal layout is predicted.

    paralab plan --model gpt2 --size gpt3-6.7b --gpu H100-SXM-80GB --n-gpus 64
    paralab plan --layers 80 --hidden 8192 --heads 64 --n-gpus 256
    paralab plan --model llama --size 8b --tokens 15e12 --report plan.html
    paralab plan QUESTIONS.csv --out PLANS.csv

Looked at are data, tensor and pipeline degrees, ZeRO 0 to 3 over all data ranks or those of a node, sequence
parallelism, schedules, stages of a rank and uneven ones, micro-batches, recomputation, context parallelism of long
sequences and expert parallelism of mixtures. A file of questions has the columns of docs/planner.md, those of the
layout left empty.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paralab.commands.device_options import DeviceParser, devices
from paralab.console.clock import Moment
from paralab.console.outputs import check_outputs, check_writable, write_whole
from paralab.console.phases import Phases
from paralab.errors import ConfigError, ParalabError, UsageError
from paralab.models import NAMES
from paralab.options.arguments import whole
from paralab.planning import cases, checked, columns, hardware
from paralab.planning.cases import SHOWN
from paralab.planning.goals import Goal, number
from paralab.planning.hardware import Device

if TYPE_CHECKING:
    from paralab.planning.shapes import Trained
    from paralab.planning.solving import Solved

_CLUSTER = ("n_gpus", "gpus_per_node", "global_batch_size", "sequence_length", "precision", "framework")
WRITTEN = 1000  # layouts of a file
_GOAL = {
    "tokens": (
        "N",
        "Tokens to train on (images, for a model of images), or 20x for 20 per weight: prints what that takes",
    ),
    "days": (
        "N",
        "Days that the training may take: prints how many tokens that is; with --tokens, how many GPUs",
    ),
    "budget_usd": ("DOLLARS", "What the training may cost: prints how many tokens that is; with --days, how many GPUs"),
    "price_per_gpu_hour": ("DOLLARS", "Price of a GPU for an hour"),
}


def main(argv: Sequence[str]) -> int:
    """Answer one question, or those of a file. Returns: 0, or 1 where one has no answer that fits."""
    options = _parser().parse_args(list(argv))
    own = devices(options.device or [])
    device = hardware.find(options.gpu, own)
    default = device.gpu
    goal = _goal(options)
    _check(options)
    if device.measured is not None and not options.questions:
        from paralab.commands import plan_measured

        plan_measured.answer(options, device, top=options.top or SHOWN)
        return 0
    if options.calibrate_from:
        raise ConfigError("--calibrate-from is for one question about a measured device: add --gpu device.json")
    if options.questions:
        top = options.top or (WRITTEN if options.out else SHOWN)
        return _answer_file(Path(options.questions), options.out, own, default, top)
    _answer(options, goal, own, default)
    return 0


def _answer(options: Any, goal: Goal, own: Mapping[str, Device], gpu: str) -> None:
    """Search, print the answer, and write it to the files that were asked for."""
    from paralab.planning import report, solving

    check_outputs({"--out": options.out, "--report": options.report})
    model, raw = _question(options)
    goal.check(n_gpus="n_gpus" in raw)
    with Phases(Moment.now(), transient=True) as phases:
        solved = solving.solve(goal, raw, own, gpu, phases)
    if options.out:
        _write(Path(options.out), solved, model, raw, options.top or WRITTEN)
    print(report.text(solved, raw, model, own, gpu, top=options.top or SHOWN))
    if options.report:
        _draw(Path(options.report), solved, model, raw, own, gpu, options.top or WRITTEN)
    if options.check:
        from paralab.commands import plan_check

        print("\n".join(["", *plan_check.lines(solved.found, model)]))


def _write(out: Path, solved: "Solved", model: "Trained | None", raw: Mapping[str, Any], most: int) -> None:
    from paralab.planning import records

    found = solved.found
    numbers = found.ranked(most)
    if out.suffix == ".json":
        write_whole(out, records.as_json(solved, numbers, model=model, raw=raw))
    else:
        write_whole(out, records.as_csv(found, numbers, model))


def _draw(
    out: Path,
    solved: "Solved",
    model: "Trained | None",
    raw: Mapping[str, Any],
    own: Mapping[str, Device],
    gpu: str,
    most: int,
) -> None:
    from paralab.planning import page

    found = solved.found
    numbers = found.ranked(most)
    with Phases(Moment.now(), transient=True) as phases:
        content = page.render(solved, raw, model, own, gpu, numbers, phases).encode()
    write_whole(out, content)
    print(f"wrote {out} ({len(content) / 1024:,.0f} KiB)", file=sys.stderr)


def _goal(options: Any) -> Goal:
    """Return what the training is to reach. Raises: ConfigError for a number that cannot be."""
    numbers = {
        name: None if text is None else number(text, f"--{name.replace('_', '-')}")
        for name in ("budget_usd", "days", "price_per_gpu_hour")
        for text in [getattr(options, name)]
    }
    return Goal(options.tokens, numbers["budget_usd"], numbers["days"], numbers["price_per_gpu_hour"])


def _check(options: Any) -> None:
    """Refuse options that would change nothing. Raises: ConfigError."""
    alone = ("model", "size", "tokenizer", *columns.SHAPES, *_CLUSTER, "set", "report", *_GOAL)
    given = [name for name in alone if getattr(options, name) is not None]
    given += [name for name in ("gated", "check") if getattr(options, name)]
    if options.tokenizer is not None and not options.questions:
        if options.model is None:
            raise ConfigError("--tokenizer without --model: name the model whose vocabulary it is, or give --vocab N")
        if options.vocab is not None:
            raise ConfigError("--tokenizer with --vocab: each says how many tokens there are, leave one of them out")
    if options.check and options.model is None:
        raise ConfigError("--check without --model: only a model that paralab trains has a dry run, name one")
    if options.questions and given:
        flag = f"--{given[0].replace('_', '-')}"
        raise ConfigError(f"{flag} with {options.questions}: say it in a column of the file, or leave the file out")
    if options.out and Path(options.out).suffix not in ((".csv",) if options.questions else (".csv", ".json")):
        kinds = ".csv" if options.questions else ".csv or .json"
        raise ConfigError(f"--out {options.out}: the name has to end with {kinds}")


def _answer_file(source: Path, out: str | None, own: Mapping[str, Device], gpu: str, top: int) -> int:
    from paralab.planning import report

    if out:
        check_writable(Path(out), inputs=[source])
    lines: list[list[str]] = []
    problems = 0
    rows = cases.read(source)
    for said in cases.repeated(rows):
        print(f"{source}, {said}", file=sys.stderr)
    for row in rows:
        try:
            if row.error is not None:
                raise UsageError(row.error)
            lines += report.answers(row.case_id, row.raw, own, gpu, top=top)
        except UsageError as error:
            problems += 1
            print(f"{source}, line {row.line}: {error}", file=sys.stderr)
    content = cases.write(report.HEADER, lines)
    if out:
        write_whole(Path(out), content)
    else:
        sys.stdout.write(content.decode())
    print(checked.sentence(), file=sys.stderr)
    return ParalabError.exit_status if problems else 0


def _parser() -> DeviceParser:
    parser = DeviceParser(prog="paralab plan", description=__doc__)
    parser.add_argument(
        "questions", metavar="QUESTIONS.csv", nargs="?", help="File of questions to answer, one in each row"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="Take a dry run of the fastest layout that paralab trains, and compare its memory with the prediction",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="Write the layouts with all that is predicted of them to this .csv or .json file"
    )
    parser.add_argument(
        "--report", metavar="FILE.html", help="Draw the answer as tables and charts into one file that opens offline"
    )
    parser.add_argument("--model", metavar="NAME", help=f"Model: {', '.join(NAMES)}, FILE.py:SPEC or hf:FOLDER")
    parser.add_argument("--size", metavar="SIZE", help="Size of that model (default: its default size)")
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="Give that model the vocabulary of a tokenizer: gpt2, bytes, or a file"
    )
    for name in (*columns.SHAPES, *_CLUSTER):
        metavar = "WORD" if name in ("precision", "framework") else "N"
        also = ["--seq-len"] if name == "sequence_length" else []  # as `paralab run` has it
        parser.add_argument(f"--{name.replace('_', '-')}", *also, metavar=metavar, help=_help(name))
    parser.add_argument("--gated", action="store_true", help="The MLP has a gate (SwiGLU)")
    parser.add_argument(
        "--calibrate-from",
        metavar="ROWS.csv",
        help="Correct step times by one factor, from three or more rows that paralab run or bench wrote on that device",
    )
    parser.add_devices(
        gpu="Device, or the file of one that paralab calibrate measured",
        device="Describe a device of your own, as paralab predict takes it",
    )
    parser.add_argument(
        "--set", metavar="COLUMN=VALUE", action="append", help="Fix any column of docs/planner.md, such as tp=8"
    )
    shown = f"Layouts to show and to write (default: {SHOWN} shown, {WRITTEN:,} written)"
    parser.add_argument("--top", metavar="N", type=whole(1), help=shown)
    for name, (metavar, meaning) in _GOAL.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=meaning)
    return parser


def _help(name: str) -> str:
    meaning = columns.BY_NAME[name].meaning
    return f"{meaning[0].upper()}{meaning[1:]}".replace("%", "%%")


def _question(options: Any) -> "tuple[Trained | None, dict[str, Any]]":
    """Return the model, None for shapes that no model of paralab has, and the columns. Raises: UsageError."""
    model: Trained | None = None
    raw: dict[str, Any] = {}
    if options.model:
        from paralab.planning import shapes

        with Phases(Moment.now(), transient=True) as phases:
            phases.begin("reading the shape of the model")
            model, raw = shapes.find(options.model, options.size, options.tokenizer)
    elif options.size:
        raise ConfigError("--size without --model: name the model, such as --model gpt2")
    cells = {name: value for name in (*columns.SHAPES, *_CLUSTER) if (value := getattr(options, name)) is not None}
    for pair in options.set or []:
        column, is_there, value = pair.partition("=")
        if not is_there or column not in columns.BY_NAME:
            raise ConfigError(f"--set {pair}: give COLUMN=VALUE, with a column of docs/planner.md, such as tp=8")
        cells[column] = value
    given = {**cases.parse(cells), **({"gated": True} if options.gated else {})}
    if any(name in raw and raw[name] != value and name != "sequence_length" for name, value in given.items()):
        model = None  # it is another one now
    raw |= given
    if "layers" not in raw or "hidden" not in raw:
        raise ConfigError("no model: give --model gpt2 --size gpt3-6.7b, or --layers 32 --hidden 4096, or a file")
    return model, raw
