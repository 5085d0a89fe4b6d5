"""Find vectors in the place of a prompt after which a trained language model writes a given text.

    paralab invert --checkpoint runs/alice --text "said Alice" --prompt "Oh!"

Gradient descent moves --length vectors, from several starts, until the text is the likeliest continuation. Printed are
the losses, what the model writes after the vectors and after the tokens nearest to them, and how both differ from
--prompt, where it is given (docs/inversion.md).
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.console.clock import Moment
from paralab.console.outputs import check_writable, write_whole
from paralab.console.phases import Phases
from paralab.console.pictures import FORMS, check_can_draw, form_of
from paralab.errors import ConfigError, DataError
from paralab.models.files import FORM, MOVED
from paralab.options.arguments import TOKENIZER_MOVED, Parser, add_checkpoint, letters, positive_up_to, whole

if TYPE_CHECKING:
    from torch import Tensor

    from paralab.data.tokenizer import Tokenizer
    from paralab.inference.inversion import Inverted
    from paralab.inference.restore import Trained

_LENGTH = 8  # vectors, where neither --length nor --prompt says how many
_LARGEST_RATE = 10.0  # beyond it vectors end hundreds of times as far away as tokens are from each other
_ROWS = 8  # of the curve, as it is printed


def main(argv: list[str]) -> int:
    """Find the vectors; print what they are and do. Returns: 0.

    Raises: ConfigError for a checkpoint of another model; DataError for a text that the model cannot write.
    """
    options = _parse(argv)
    if options.out is not None:
        check_can_draw(options.out)
        check_writable(options.out, make_folders=True)
    from paralab.inference.inversion import Table, invert
    from paralab.inference.restore import restore
    from paralab.inference.shown import Shown
    from paralab.models.configs import TextConfig

    trained = restore(options.checkpoint, model=options.model, tokenizer=options.tokenizer)
    config = trained.work.model_config
    if not isinstance(config, TextConfig):
        raise ConfigError(
            f"{trained.path} is a {trained.work.spec.name} model: paralab invert needs one of texts, as gpt2 is"
        )
    from paralab.data.tokenizer import get_tokenizer

    tokenizer = get_tokenizer(config.tokenizer)
    text = _ids(options.text, "--text", tokenizer, trained)
    prompt = None if options.prompt is None else _ids(options.prompt, "--prompt", tokenizer, trained)
    length = options.length or (_LENGTH if prompt is None else len(prompt))
    _check_window(length, len(text), config.seq_len)
    if prompt is not None:
        _check_window(len(prompt), len(text), config.seq_len)
    print(f"{trained.work.spec.name} {trained.work.size} from {trained.path}", file=sys.stderr)
    table = Table.of(trained.model, tokenizer.vocab_size)
    with Phases(Moment.now(), transient=True) as phases:
        phases.begin("gradient descent", total=options.steps + 1)
        found = invert(
            trained.model,
            table,
            text,
            length=length,
            restarts=options.restarts,
            steps=options.steps,
            learning_rate=options.learning_rate,
            seed=options.seed,
            each_step=phases.advance,
        )
    print("\n".join(_curve(found)), end="\n\n")
    print("\n".join(Shown(trained.model, table, tokenizer, text, found, prompt).lines()))
    if options.out is not None:
        _write(options.out, found)
    return 0


def _ids(text: str, flag: str, tokenizer: "Tokenizer", trained: "Trained") -> "Tensor":
    """Return the tokens (tokens,) int64 of a text. Raises: DataError where the tokenizer cannot write it."""
    import torch

    (ids,) = tokenizer.encode([text])
    if not len(ids) or tokenizer.decode(ids.tolist()) != text:
        raise DataError(
            f"{flag} {text!r} has letters that the tokenizer {tokenizer.name} has no tokens for (it gives "
            f"{tokenizer.decode(ids.tolist())!r} back): give a text in its letters"
        )
    return torch.from_numpy(ids.astype("int64")).to(trained.device)


def _check_window(length: int, n_tokens: int, seq_len: int) -> None:
    if length + n_tokens - 1 > seq_len:
        raise DataError(
            f"{length} vectors or tokens before a text of {n_tokens} tokens do not fit into the {seq_len} positions of "
            f"this model: give a shorter --text, or fewer with --length"
        )


def _curve(found: "Inverted") -> list[str]:
    steps, restarts = len(found.curve) - 1, found.curve.shape[1]
    lines = [
        f"loss of a token in nats, of {restarts} restart{'s' if restarts > 1 else ''}",
        "    step    lowest    median",
    ]
    for step in sorted({round(steps * i / _ROWS) for i in range(_ROWS + 1)}):
        losses = found.curve[step]
        lines.append(f"{step:>8}  {float(losses.min()):>8.4f}  {float(losses.quantile(0.5)):>8.4f}")
    return lines


def _write(path: Path, found: "Inverted") -> None:
    """Write the losses of all steps and restarts. Raises: UsageError when the file cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in FORMS:
        write_whole(path, _picture(found, form_of(path)))
        return
    rows = (
        f"{step},{restart},{float(loss):.6g}"
        for step, row in enumerate(found.curve)
        for restart, loss in enumerate(row)
    )
    write_whole(path, "\n".join(["step,restart,loss", *rows, ""]).encode())


def _picture(found: "Inverted", form: str) -> bytes:
    from paralab.pages.lines import Series, lines
    from paralab.pages.page import Chart
    from paralab.pages.palette import VARIANTS, Look
    from paralab.pages.raster import drawn

    series = [
        Series(
            f"restart {i}", list(enumerate(losses)), look=Look(VARIANTS[i % len(VARIANTS)], dashed=i >= len(VARIANTS))
        )
        for i, losses in enumerate(found.curve.T.tolist())
    ]
    title = "Loss of a token in nats, by step"
    chart = lines(series, title=title, unit=lambda loss: f"{loss:.2g}", along="step", decades=True)
    return drawn([[Chart(title, chart, f"Restart {found.best} ends lowest.")]], title=title, form=form)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="paralab invert", description=__doc__)
    add_checkpoint(parser)
    parser.add_argument("--model", metavar=FORM, help=MOVED)
    parser.add_argument("--tokenizer", metavar="FILE", help=TOKENIZER_MOVED)
    parser.add_argument("--text", type=letters, required=True, metavar="TEXT", help="Text that the model is to write")
    parser.add_argument("--prompt", type=letters, metavar="TEXT", help="True prompt, to compare with what is found")
    parser.add_argument(
        "--length",
        type=whole(1),
        metavar="K",
        help=f"Number of vectors (default: as many as --prompt has tokens, or {_LENGTH})",
    )
    parser.add_argument(
        "--restarts",
        type=whole(1),
        default=4,
        metavar="N",
        help="Number of random starts, each with a seed of its own (default: 4)",
    )
    parser.add_argument("--steps", type=whole(1), default=300, metavar="N", help="Steps of Adam (default: 300)")
    parser.add_argument(
        "--learning-rate",
        type=positive_up_to(_LARGEST_RATE),
        default=0.1,
        metavar="X",
        help="Learning rate at the beginning, in units of the root mean square of the embeddings; it falls to zero. "
        f"At most {_LARGEST_RATE:g}: Adam's first step moves each number by as much (default: 0.1)",
    )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="Seed of the first start (default: 0)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="File to write the losses of all steps to: .csv, or .svg, .png or .pdf for a picture",
    )
    options = parser.parse_args(argv)
    for flag in ("text", "prompt"):
        if getattr(options, flag) == "":
            raise ConfigError(f"--{flag} is empty: give at least one letter")
    forms = (".csv", *FORMS)
    if options.out is not None and options.out.suffix.lower() not in forms:
        raise ConfigError(f"--out {options.out}: use a name ending in {', '.join(forms)}")
    return options
