"""What a model has to keep to be cut into stages, tried out on the meta device, and what to type where it does not."""

import copy
from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from paralab.axes.blocks import block_of
from paralab.axes.pipeline.stages import cut_stage, tied_ends
from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.models.configs import C
from paralab.models.source_lines import line_of, place, short
from paralab.models.spec import SAMPLES_TRIED, ModelSpec


def check(layout: Layout, spec: ModelSpec[C], config: C) -> None:
    """Raise LayoutError where a model has too few blocks for its stages, or cannot be cut between them."""
    blocks = spec.blocks(config)
    if not blocks:
        raise LayoutError(without_blocks(layout, spec.name, _named_in_turn(layout, spec, config)))
    if layout.stages > len(blocks):
        more = sum(layers - 1 for layers in (layout.first_layers or 1, layout.last_layers or 1))  # than one at the ends
        most = (len(blocks) - more * (more < len(blocks))) // layout.pipeline.stages_per_rank
        use = f"pp{most} or less with {layout.schedule}" if most > 1 else "fewer stages a rank"
        got = f"{layout.stages} pipeline stages for the {len(blocks)} blocks of {spec.name}"
        raise LayoutError(f"{got}: use {use}, or a larger --size")
    _check_ends(layout, len(blocks), spec.name)
    if spec.cut is not None:
        return
    for name, origin in spec.tied_in(config).items():
        if name not in tied_ends(spec, config) and not _together(name, origin, spec, config):
            raise LayoutError(
                f"{name} of {spec.name} shares the storage of {origin}, and stages would hold one each: a pipeline can "
                "have that of one before all blocks and one after them; use a layout without pp"
            )
    if not spec.is_built_in and (problem := cut_problem(spec, config)):
        raise LayoutError(f"{spec.name} cannot be cut into stages: {': '.join(problem)}")


def _check_ends(layout: Layout, blocks: int, name: str) -> None:
    """Raise LayoutError where the first and the last stage leave too few layers for the others, or have not all."""
    given = {"first": layout.first_layers, "last": layout.last_layers}
    ends = {end: layers for end, layers in given.items() if layers is not None}
    others, left = layout.stages - len(ends), blocks - sum(ends.values())
    if not ends or (left >= others if others else left == 0):
        return
    words = " and ".join(f"{end}{layers}" for end, layers in ends.items())
    got = f"{words} with the {blocks} layers of {name}"
    if not others:
        raise LayoutError(f"{got}: two stages have all of them, use first{ends['first']} alone, or another last")
    most = blocks - others
    use = f"{next(iter(ends))}{most} or less" if len(ends) == 1 else f"first and last that add up to {most} or less"
    rest = f"each of the other {others} stages" if others > 1 else "the other stage"
    raise LayoutError(f"{got}: {rest} needs one, use {use}")


def without_blocks(layout: Layout, name: str, otherwise: str = "") -> str:
    """Say how a model gets blocks. otherwise: what may be typed in place of it."""
    advice = ["put its repeated layers into self.layers = nn.ModuleList(...)", otherwise]
    return f"{name} has no blocks for {layout.stages} pipeline stages: {', or '.join(filter(None, advice))}"


def _named_in_turn(layout: Layout, spec: ModelSpec[C], config: C) -> str:
    children = [
        name for name, child in spec.on_meta(config).named_children() if next(child.parameters(), None) is not None
    ]
    if len(children) < layout.stages:
        return ""
    return f"name modules that run in turn: block_names=lambda config: {_tuple(children)}"


def _tuple(names: Sequence[str]) -> str:
    return "(" + ", ".join(f'"{name}"' for name in names) + ("," if len(names) == 1 else "") + ")"


def _together(name: str, origin: str, spec: ModelSpec[C], config: C) -> bool:
    """Return whether two parameters lie in one block, or both before or both after all blocks."""
    blocks, sides = spec.blocks(config), spec.ends(config)
    first, second = block_of(name, blocks), block_of(origin, blocks)
    if first is not None or second is not None:
        return first == second
    held = [tuple(f"{side}." for side in names) for names in sides]
    return any(f"{name}.".startswith(side) and f"{origin}.".startswith(side) for side in held)


@lru_cache(maxsize=16)
def cut_problem(spec: ModelSpec[C], config: C) -> tuple[str, str] | None:
    """Return where and how a model fails as two stages on the meta device; None where it passes, or has one block.

    Of a model with `with_blocks`, two blocks are enough to see it.
    """
    if spec.with_blocks is not None:
        config = spec.with_blocks(config, min(2, len(spec.blocks(config))))
    if len(spec.blocks(config)) < 2:
        return None
    inputs, targets = spec.example(config, SAMPLES_TRIED)
    whole = spec.on_meta(config)
    first, last = (
        cut_stage(copy.deepcopy(whole), spec=spec, config=config, layout=Layout(pp=2), stage=stage)
        for stage in range(2)
    )
    try:
        sent = first(*(x.to("meta") for x in inputs))
        sent = sent if isinstance(sent, tuple) else (sent,)
        if not all(isinstance(x, Tensor) and x.is_floating_point() for x in sent):
            got = ", ".join(str(x.dtype) if isinstance(x, Tensor) else type(x).__name__ for x in sent)
            needed = "a tensor or a tuple of floating-point tensors is needed"
            return place(type(first).forward), f"the first stage passes on {got}: {needed}"
        loss = last(*sent, targets=targets.to("meta"))
    except Exception as error:  # of the model's own code, which may raise any
        where = line_of(error, spec.build, otherwise=spec.name)
        return where, f"the model cut in two fails: {short(error)}; {_advice(spec, config)}"
    if not isinstance(loss, Tensor) or loss.shape != ():
        return place(type(last).forward), f"the last stage does not return the loss; {_advice(spec, config)}"
    return None


def _advice(spec: ModelSpec[C], config: C) -> str:
    """Say how forward skips what a stage does not hold, with the names that the model has."""
    first, last = spec.ends(config)
    lines = [f"x = self.{first[0]}(x) if self.{first[0]} is not None else x"] if first else []
    lines += [f"return x if self.{last[-1]} is None else ..."] if last else []
    found = "" if spec.first or spec.last else f" (found: first={_tuple(first)}, last={_tuple(last)})"
    return f"forward has to skip what is None{', as in ' if lines else ''}{' and '.join(lines)}{found}"
