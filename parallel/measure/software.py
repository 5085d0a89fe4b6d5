"""Seconds that software adds on the host, whatever a module computes: wrappers, hooks, and tensors that are divided.

The axes wrap a module whose layers take no time, in a group whose collectives return at once, and a forward and
backward pass of it is compared with one of the module as it is. What the collectives take is measured elsewhere.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from paralab.axes.axis import Software
from paralab.axes.data import ddp, zero
from paralab.axes.pieces import distribute, run_locally
from paralab.axes.tensor import layers
from paralab.layout import Layout
from paralab.measure.programs import Small
from paralab.processes.mesh import Mesh

_PASSES, _WARM_UP = 20, 3
_MICRO_BATCHES, _ROWS, _WIDTH = 8, 4, 8
Wrap = Callable[[Small, Mesh], nn.Module]


def _replicated(model: Small, mesh: Mesh) -> nn.Module:
    wrapped = ddp.replicate(model, mesh=mesh)
    ddp.answer(wrapped, mesh=mesh)
    return wrapped


def _sharded(model: Small, mesh: Mesh) -> nn.Module:
    setattr(model, "block_names", [f"layers.{n}" for n in range(len(model.layers))])  # noqa: B010 (no tensor, no module)
    zero.shard(model, mesh=mesh, precision="fp32")
    return model


def _split(model: Small, mesh: Mesh) -> nn.Module:
    layers.split_layers(model, {"layers.*.1": "column", "layers.*.3": "row"}, mesh=mesh)
    return model


def _local(model: Small, mesh: Mesh) -> nn.Module:
    for layer in model.layers:
        for module in list(layer.children())[:2]:
            distribute(module, {name: None for name, _ in module.named_parameters()}, mesh["tp"])
            run_locally(module)
    return model


# layout of two ranks, how a module is wrapped, and how many of these it has then
WAYS: Mapping[Software, tuple[str, Wrap, Callable[[Small], int]]] = {
    Software.REPLICATED_PARAMETER: ("dp2", _replicated, lambda model: len(list(model.parameters()))),
    Software.KEPT_MODULE: ("dp2/zero2", _sharded, lambda model: len(model.layers) + 1),
    Software.SHARDED_MODULE: ("dp2/zero3", _sharded, lambda model: len(model.layers) + 1),
    Software.SPLIT_LAYER: ("tp2", _split, lambda model: 2 * len(model.layers)),
    Software.LOCAL_LAYER: ("tp2", _local, lambda model: 2 * len(model.layers)),
}


def software(device: torch.device, group: dist.ProcessGroup) -> dict[Software, float]:
    """Return the seconds of each thing that an axis may name, but for `stage_s`. group: which sends nothing."""
    plain_s = _pass_s(Small().to(device), device)
    found = {}
    for name, (text, wrap, count) in WAYS.items():
        layout, model = Layout.parse(text), Small().to(device)
        number = count(model)
        grid = DeviceMesh.from_group(group, device.type, mesh_dim_names=tuple(layout.axes))
        found[name] = max(_pass_s(wrap(model, Mesh(layout, device, grid)), device) - plain_s, 0.0) / number
    return found


def stage_s(device: torch.device, group: dist.ProcessGroup) -> float:
    """Return the seconds that a schedule adds to a stage's forward and backward pass of one micro-batch.

    In it are messages of next to no size, and the wait until the process that gets them runs. Collective over a group
    of two ranks, a stage each: one flush of 1F1B takes as long as one micro-batch more than it has.
    """
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    model, rank = Small().to(device), dist.get_rank(group)
    here, later = (torch.empty(_ROWS, _WIDTH, device="meta", requires_grad=needs) for needs in (rank > 0, True))
    stage = PipelineStage(model, rank, 2, device, input_args=(here,), output_args=(later,), group=group)
    schedule = Schedule1F1B(stage, _MICRO_BATCHES, loss_fn=lambda y, _: y.sum(), scale_grads=False)
    x, targets = (torch.ones(_MICRO_BATCHES * rows, _WIDTH, device=device) for rows in (_ROWS, 1))
    flush_s = _median_s(model, lambda: schedule.step(x) if rank == 0 else schedule.step(target=targets, losses=[]))
    return max(flush_s / (_MICRO_BATCHES + 1) - _pass_s(model, device), 0.0)


def _pass_s(model: nn.Module, device: torch.device) -> float:
    """Return the seconds of a forward and backward pass."""
    x = torch.ones(_ROWS, _WIDTH, device=device)
    return _median_s(model, lambda: model(x).sum().backward())


def _median_s(model: nn.Module, run: Callable[[], object]) -> float:
    """Return the median seconds of what makes gradients of a module, each time as if for the first time."""
    times = []
    for number in range(_WARM_UP + _PASSES):
        began = time.perf_counter()
        run()
        times += [time.perf_counter() - began] if number >= _WARM_UP else []
        for parameter in model.parameters():
            parameter.grad = None
    return statistics.median(times)
