"""Answers to a row of questions whose device was measured: the best layouts, by the columns of a case."""

from collections.abc import Mapping
from typing import Any

from paralab.axes.costs import GIB
from paralab.errors import LayoutError
from paralab.layout import layers_of_stages
from paralab.options.config import RunConfig
from paralab.planning.hardware import Device
from paralab.planning.measured import imagined
from paralab.planning.measured.cases import cluster_of
from paralab.planning.measured.imagined import Imagined
from paralab.planning.measured.search import Choice, search
from paralab.planning.settle import settle

_LAYOUT = ("dp", "tp", "pp", "zero", "schedule", "vpp", "sequence_parallel", "micro_batch_size", "recompute")
_SCHEDULES = {"naive": "gpipe", "zero-bubble": "zb-1p"}  # by the names that cases have for them


def best(raw: Mapping[str, Any], device: Device, *, top: int) -> list[dict[str, Any]]:
    """Return columns of the fastest layouts of a question that fit, or of those that need least memory.

    Columns of the layout that the question gives are kept. Raises: UsageError where there is no layout.
    """
    if "n_gpus" not in raw:
        raise LayoutError("n_gpus is empty: say how many processes there are")
    open_ = {name: value for name, value in raw.items() if name not in (*_LAYOUT, "cp", "ep")}
    settled = settle({**open_, "gpu": device.gpu})
    spec, config = imagined.model_of(settled.case)
    assert device.measured is not None
    found = search(
        spec,
        config,
        device.measured,
        ranks=int(raw["n_gpus"]),
        batch=int(settled.case.global_batch_size),
        run=RunConfig(precision=settled.case.precision),
        cluster=cluster_of(settled),
    )
    kept = [one for one in found if all(columns(one.plan)[name] == raw[name] for name in _LAYOUT if name in raw)]
    if not kept:
        given = ", ".join(f"{name}={raw[name]}" for name in _LAYOUT if name in raw)
        raise LayoutError(f"no layout has {given}: leave more of the layout empty")
    if not kept[0].fits:
        kept.sort(key=lambda one: one.predicted.memory.total)
    return [_answer(one) for one in kept[:top]]


def columns(plan: Imagined) -> dict[str, Any]:
    """Return the columns of a case that describe a layout."""
    layout = plan.layout
    return {
        **{name: layout.size(name) for name in ("dp", "tp", "pp")},
        "cp": 1,
        "ep": 1,
        "zero": layout.zero,
        "schedule": _SCHEDULES.get(layout.pipeline.name, layout.pipeline.name) if layout.pp > 1 else "",
        "vpp": layout.stages // layout.pp,
        "sequence_parallel": layout.sequence_parallel,
        "micro_batch_size": plan.division.micro_batch_size,
        "recompute": plan.run.checkpointing,
        "layers_per_stage": _uneven(plan),
    }


def _uneven(plan: Imagined) -> tuple[int, ...]:
    """Return the layers of each stage where the first or the last one has fewer, () for evenly."""
    layout = plan.layout
    if layout.first_layers is None and layout.last_layers is None:
        return ()
    blocks = len(plan.spec.blocks(plan.model_config))
    return layers_of_stages(blocks, layout.stages, first=layout.first_layers, last=layout.last_layers)


def _answer(one: Choice) -> dict[str, Any]:
    predicted = one.predicted
    return columns(one.plan) | {
        "step_time_s": predicted.step_time_s,
        "memory_gib": predicted.memory.total / GIB,
        "fits": one.fits,
        "trained_by_paralab": True,  # no other is looked at
    }
