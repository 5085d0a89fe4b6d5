"""The stages of a pipeline: consecutive blocks on consecutive ranks, cut from the whole model."""

import copy

from torch import nn

from paralab.axes.context import BuildContext, Planned
from paralab.layout import Layout, layers_of_stages
from paralab.models.configs import C
from paralab.models.spec import Cut, ModelSpec


def stage_blocks(n_blocks: int, layout: Layout, stage: int) -> range:
    """Return the blocks of one stage: equal counts, or as many at the ends as the layout says."""
    counts = layers_of_stages(n_blocks, layout.stages, first=layout.first_layers, last=layout.last_layers)
    start = sum(counts[:stage])
    return range(start, start + counts[stage])


def cut_stage(model: nn.Module, *, spec: ModelSpec[C], config: C, layout: Layout, stage: int) -> nn.Module:
    """Delete from a whole model (on the meta device) what one stage does not hold. Names stay as they are."""
    stages, names = layout.stages, spec.blocks(config)
    cut = Cut(stage_blocks(len(names), layout, stage), first=stage == 0, last=stage == stages - 1)
    if spec.cut is not None and stages > 1:
        return spec.cut(config, model, cut)
    for number, name in enumerate(names):
        if number not in cut.blocks:
            container, _, key = name.rpartition(".")
            del model.get_submodule(container)._modules[key]
    first, last = spec.ends(config)
    for name in (() if cut.first else first) + (() if cut.last else last):
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, None)
    return model


def tied_ends(spec: ModelSpec[C], config: C) -> dict[str, str]:
    """Return the tied parameters of which the first stage holds one and the last stage the other.

    Of a model that cuts itself it is taken that all are.
    """
    if spec.cut is not None:
        return dict(spec.tied_in(config))
    first, last = (tuple(f"{name}." for name in names) for names in spec.ends(config))
    pairs = spec.tied_in(config).items()
    return {name: origin for name, origin in pairs if f"{name}.".startswith(last) and f"{origin}.".startswith(first)}


def make_stages(context: BuildContext) -> dict[int, nn.Module]:
    """Build the stages that this rank holds, on the meta device, by stage index."""
    pp, layout = context.mesh.rank("pp"), context.layout
    mine = layout.pipeline.stages_of(pp, layout.pp)
    whole = context.new_model()
    return {stage: stage_of(whole, context, stage) for stage in mine}


def stage_of(whole: nn.Module, plan: Planned, stage: int) -> nn.Module:
    return cut_stage(copy.deepcopy(whole), spec=plan.spec, config=plan.model_config, layout=plan.layout, stage=stage)
