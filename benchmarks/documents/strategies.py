"""The page of what each strategy does, and its pictures: drawn by what `paralab explain` prints (docs/strategies.md).

`python -m paralab.benchmarks.documents strategies` prints the page, `img/strategies/zero3.svg` in its place a picture.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from paralab.layout.strategies import STRATEGIES, Strategy, example
from paralab.options.config import RunConfig

NPROC = 4
MODEL, MIXTURE, SIZE = "gpt2", "mixtral", "nano"

HEAD = f"""\
# What each strategy does

Made by `python -m paralab.benchmarks.documents strategies` from the code; a test fails when it is stale. The pictures
show {MODEL} {SIZE} on {NPROC} ranks. Those of your own model, in a terminal or as a file:

    paralab explain zero3 --model llama --size 160m --nproc 8
    paralab explain dp2.tp2 --model diffusion --size dit-s/2 --out picture.svg

How to read one:

- Ranks stand side by side. A bar is what a rank holds, beside what one process holds that trains alone on all samples.
- Time goes down, through the moments of a step: forward passes, backward passes, what completes the gradients, the loss
  and the gradient norm over all ranks, the update.
- A line joins the ranks of a group that call a collective together: each of them waits until all have come. The numbers
  on it are what each rank sends in a step by gloo, which is what runs on CPUs. `--backend nccl` shows what the ring
  algorithms of GPUs send.
- Of a pipeline, the passes of each rank are drawn in time, as its schedule orders them, where all stages take equally
  long and messages take no time.
"""


def page() -> str:
    """Return the page: of each strategy when to use it, what it costs, and its picture."""
    return "\n".join([HEAD, *(line for strategy in STRATEGIES.values() for line in _section(strategy))])


def _section(strategy: Strategy) -> Iterator[str]:
    names = " or ".join(f"`{name}`" for name in (strategy.name, *strategy.aliases))
    yield from (f"## {names}: `{example(strategy.name, NPROC)}`", "")
    yield from (f"- When: {strategy.when}.", f"- What it costs: {strategy.costs}.", "")
    yield from (f"![{strategy.name}: what each rank holds and sends]({_path(strategy.name)})", "")


def _path(name: str) -> str:
    return f"img/strategies/{name}.svg"


def _drawn(name: str, model: str, size: str) -> str:
    """Return the picture of a strategy as an SVG."""
    from paralab.commands.explain_step import explained
    from paralab.commands.explain_svg import picture

    return picture(explained(RunConfig(model=model, size=size, layout=example(name, NPROC))))


def _model(strategy: Strategy) -> str:
    return MIXTURE if "ep" in strategy.axes else MODEL


# by path below docs/; the last one is the picture of the README
PICTURES: Mapping[str, Callable[[], str]] = {
    _path(name): partial(_drawn, name, _model(strategy), SIZE) for name, strategy in STRATEGIES.items()
} | {_path("dit-2d"): partial(_drawn, "2d", "diffusion", "dit-mnist")}
