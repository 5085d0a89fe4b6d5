"""Find the fastest layouts of a model on machines that one need not have: every legal layout is predicted.

    paralab plan --model gpt2 --size gpt3-6.7b --gpu H100-SXM-80GB --n-gpus 64
    paralab plan --layers 80 --hidden 8192 --heads 64 --kv-heads 8 --n-gpus 256
    paralab plan QUESTIONS.csv --out PLANS.csv

Looked at are data, tensor and pipeline degrees, ZeRO 0 to 3, sequence parallelism, schedules and stages of a rank,
micro-batches, recomputation, context parallelism of long sequences and expert parallelism of mixtures. A file of
questions has the columns of docs/planner.md, those of the layout left empty.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paralab.commands.predict import devices
from paralab.console.outputs import check_writable, write_whole
from paralab.errors import ConfigError, UsageError
from paralab.options.arguments import Parser
from paralab.planning import cases, checked, hardware
from paralab.planning.hardware import Device
from paralab.planning.settle import DEFAULT_GPU

FAILED = 1  # the exit status where a question could not be answered, or nothing fits
_SHAPES = ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "experts", "experts_per_token", "expert_ffn")
_CLUSTER = ("n_gpus", "gpus_per_node", "global_batch_size", "sequence_length", "precision", "framework")


def main(argv: Sequence[str]) -> int:
    """Answer one question, or those of a file. Returns: 0, or 1 where one has no answer that fits."""
    options = _parser().parse_args(list(argv))
    own = devices(options.device or [])
    default = hardware.find(options.gpu, own).gpu
    _check(options)
    if options.questions:
        return _answer_file(Path(options.questions), options.out, own, default, options.top)
    from paralab.planning import planned

    words, raw = _question(options)
    print(planned.report(raw, words, own, default, top=options.top, tokens=options.tokens, price=options.price))
    return 0


def _check(options: Any) -> None:
    """Refuse options that would change nothing. Raises: ConfigError."""
    if options.top < 1:
        raise ConfigError(f"--top {options.top}: show 1 layout or more")
    alone = ("model", "size", *_SHAPES, *_CLUSTER, "set", "tokens", "price")
    given = [name for name in alone if getattr(options, name) is not None] + (["gated"] if options.gated else [])
    if options.questions and given:
        flag = f"--{given[0].replace('_', '-')}"
        raise ConfigError(f"{flag} with {options.questions}: say it in a column of the file, or leave the file out")
    if options.out and not options.questions:
        raise ConfigError("--out without a file of questions: leave it out, or give QUESTIONS.csv")
    if options.price is not None and options.tokens is None:
        raise ConfigError("--price without --tokens: say how long the training is, such as --tokens 20x")


def _answer_file(source: Path, out: str | None, own: Mapping[str, Device], gpu: str, top: int) -> int:
    from paralab.planning import planned

    if out:
        check_writable(Path(out), inputs=[source])
    lines: list[list[str]] = []
    problems = 0
    for row in cases.read(source):
        try:
            if row.error is not None:
                raise UsageError(row.error)
            lines += planned.answers(row.case_id, row.raw, own, gpu, top=top)
        except UsageError as error:
            problems += 1
            print(f"{source}, line {row.line}: {error}", file=sys.stderr)
    content = cases.write(planned.HEADER, lines)
    if out:
        write_whole(Path(out), content)
    else:
        sys.stdout.write(content.decode())
    print(checked.sentence(), file=sys.stderr)
    return FAILED if problems else 0


def _parser() -> Parser:
    parser = Parser(prog="paralab plan", description=__doc__)
    parser.add_argument("questions", metavar="QUESTIONS.csv", nargs="?", help="Answer a file of questions, one a row")
    parser.add_argument("--out", metavar="FILE", help="Write the answers to a file to this CSV file")
    parser.add_argument("--model", metavar="NAME", help="A model of paralab: gpt2, llama, FILE.py:SPEC or hf:FOLDER")
    parser.add_argument("--size", metavar="SIZE", help="Size of that model (default: its own)")
    for name in (*_SHAPES, *_CLUSTER):
        metavar = "WORD" if name in ("precision", "framework") else "N"
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=_help(name))
    parser.add_argument("--gated", action="store_true", help="The MLP has a gate (SwiGLU)")
    parser.add_argument("--gpu", metavar="NAME", default=DEFAULT_GPU, help=f"Device (default: {DEFAULT_GPU})")
    parser.add_argument(
        "--device",
        metavar="FILE",
        action="append",
        help="Describe a device of your own, as paralab predict takes it",
    )
    parser.add_argument(
        "--set", metavar="COLUMN=VALUE", action="append", help="Fix any column of docs/planner.md, such as tp=8"
    )
    parser.add_argument("--top", metavar="N", type=int, default=10, help="Layouts to show (default: 10)")
    parser.add_argument(
        "--tokens", metavar="N", help="Tokens of the training, or 20x for 20 a weight: adds days and device-hours"
    )
    parser.add_argument("--price", metavar="DOLLARS", help="Price of a GPU for an hour: adds the cost of --tokens")
    return parser


def _help(name: str) -> str:
    meaning = cases.BY_NAME[name].meaning
    return f"{meaning[0].upper()}{meaning[1:]}".replace("%", "%%")


def _question(options: Any) -> tuple[list[str], dict[str, Any]]:
    """Return the words that name the model, and the columns of the question. Raises: UsageError."""
    words: list[str] = []
    raw: dict[str, Any] = {}
    if options.model:
        words, raw = _of_model(options.model, options.size)
    elif options.size:
        raise ConfigError("--size without --model: name the model, such as --model gpt2")
    cells = {name: value for name in (*_SHAPES, *_CLUSTER) if (value := getattr(options, name)) is not None}
    for pair in options.set or []:
        column, is_there, value = pair.partition("=")
        if not is_there or column not in cases.BY_NAME:
            raise ConfigError(f"--set {pair}: give COLUMN=VALUE, with a column of docs/planner.md, such as tp=8")
        cells[column] = value
    raw |= cases.parse(cells)
    if options.gated:
        raw["gated"] = True
    if "layers" not in raw or "hidden" not in raw:
        raise ConfigError("no model: give --model gpt2 --size gpt3-6.7b, or --layers 32 --hidden 4096, or a file")
    if "n_gpus" not in raw:
        raise ConfigError("--n-gpus is missing: say how many GPUs there are, such as --n-gpus 64")
    return words, raw


def _of_model(name: str, size: str | None) -> tuple[list[str], dict[str, Any]]:
    from paralab.models import SPECS
    from paralab.planning.shapes import shape_of

    spec = SPECS[name]
    size = size or spec.default_size
    try:
        config = spec.config(size)
    except KeyError:
        raise ConfigError(f"--size {size} is unknown for {name}: use one of {', '.join(spec.sizes)}") from None
    return ["--model", name, "--size", size], shape_of(spec, config, size)
