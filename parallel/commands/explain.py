"""Draw what each rank of a strategy or a layout holds and sends, at each moment of a step of your model.

    paralab explain zero3
    paralab explain dp2.tp2 --model llama --size 160m --global-batch-size 32
    paralab explain 2d --model diffusion --size dit-s/2 --out picture.svg

Nothing is trained and no device is used. What a rank sends and holds is what each way of splitting declares of itself;
activations and buffers are those of a dry run (docs/dry-run.md), where the layout has one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paralab.console.outputs import check_writable, write_whole
from paralab.errors import ConfigError
from paralab.layout import words
from paralab.options import heading
from paralab.options.config import RunConfig, changed
from paralab.options.flags import read

# options that have a part in training alone, not in the picture of a step
_UNSEEN = ("steps", "warmup", "timeout_s", "force", "threads", "loader_workers", "debug_collectives")


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(RunConfig):
    """What to draw."""

    out: str | None = changed(
        "out", None, help="Draw the picture into this file too, as SVG", metavar="FILE.svg", unset="not drawn"
    )


def main(argv: Sequence[str]) -> int:
    """Print the picture, and write it to a file where one is named. Returns: 0.

    Raises: ConfigError for a flag without use; LayoutError for a layout that the model does not allow.
    """
    config = requested(argv)
    out = Path(config.out) if config.out else None
    if out:
        if out.suffix.lower() != ".svg":
            raise ConfigError(f"--out {out}: the picture is written as SVG, use a name ending in .svg")
        check_writable(out)
    from paralab.commands.explain_step import explained
    from paralab.commands.explain_text import text

    step = explained(replace(config, out=None))
    print("\n".join(text(step)))
    if out:
        from paralab.commands.explain_svg import picture

        write_whole(out, picture(step).encode())
        print(f"\nwrote {out}")
    return 0


def requested(argv: Sequence[str]) -> ExplainConfig:
    """Read what to draw: a strategy or a layout may stand first, without a flag. Raises: ConfigError."""
    config, origins = read(_named(list(argv)), config=ExplainConfig, prog="paralab explain", description=__doc__)
    for name in _UNSEEN:
        if name in origins and origins[name].kind == "flag":
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} with paralab explain, whose picture it does not change: leave it out")
    if config.strategy is None and config.layout is None and heading.is_first_process():
        raise ConfigError("paralab explain draws one strategy or layout: name it, such as paralab explain zero3")
    return config


def _named(argv: list[str]) -> list[str]:
    """Return the arguments with a flag before a strategy or a layout that stands first."""
    if not argv or argv[0].startswith("-"):
        return argv
    degree = re.match(r"([a-z]+)[0-9]+(?=[./]|$)", argv[0])
    is_layout = degree is not None and degree[1] in {axis.name for axis in words.AXES}
    return ["--layout" if is_layout else "--strategy", *argv]
