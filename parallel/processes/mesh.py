"""The ranks of a layout as a grid, with the process groups of its axes."""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from paralab.errors import WorldError
from paralab.layout import Layout, words
from paralab.processes.at_exit import wait_for_gloo


@dataclass(frozen=True)
class Mesh:
    """The ranks of a layout as a grid with the dims of its axes; without a process group, a single rank.

    whole: the axes that have several dims in the grid, each as one; and dims of several axes that one works on as one.
    tensors: what tensors with values are made in.
    """

    layout: Layout
    device: torch.device
    device_mesh: DeviceMesh | None = None
    world: dist.ProcessGroup | None = None
    whole: Mapping[str, DeviceMesh] = field(default_factory=dict)
    tensors: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    @property
    def is_pretended(self) -> bool:
        """Whether no other rank is there, and tensors have no values (paralab.processes.pretend)."""
        return self.tensors is not contextlib.nullcontext

    def __getitem__(self, axis: str | tuple[str, ...]) -> DeviceMesh:
        """Return the mesh along an axis, a dim of one, joined dims, or several dims."""
        assert self.device_mesh is not None, f"no {axis} axis in a single process"
        axis = axis[0] if len(axis) == 1 and isinstance(axis, tuple) else axis
        if isinstance(axis, tuple) and not self.whole.keys().isdisjoint(axis):
            return DeviceMesh._concatenate([self[dim] for dim in axis])
        return self.whole[axis] if isinstance(axis, str) and axis in self.whole else self.device_mesh[axis]

    def size(self, axis: str) -> int:
        return self.layout.size(axis)

    def rank(self, axis: str) -> int:
        return self[axis].get_local_rank() if self.device_mesh is not None else 0

    def group(self, axis: str) -> dist.ProcessGroup:
        return self[axis].get_group()

    def groups(self) -> dict[str, dist.ProcessGroup]:
        """Return the process group of each axis with more than one rank, and of all ranks as `world`.

        The dims of an axis that has several are there beside it, and so are joined dims. What all ranks are on stands
        for the world.
        """
        world = {"world": self.world} if self.world is not None and self.layout.everyone == "world" else {}
        dims = [name for axis in words.AXES if axis.name in self.whole for name in axis.dims(self.layout)]
        return world | {axis: self.group(axis) for axis in (*dims, *self.layout.factors, *self.layout.joined)}

    def all_reduce(self, axis: str) -> Callable[..., Tensor]:
        """Return `all_reduce(tensor, op)` over an axis, the form that `paralab.models.spec.Reducing` calls."""
        group = self.group(axis)

        def all_reduce(tensor: Tensor, op: str = "sum") -> Tensor:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM, group=group)
            return tensor

        return all_reduce

    def all_gather(self, axis: str) -> Callable[[Tensor], Tensor]:
        """Return `all_gather(x)` over an axis, the form that `paralab.models.gathering.Gathering` calls."""
        group = self.group(axis)

        def all_gather(x: Tensor) -> Tensor:
            whole = x.new_empty((group.size() * len(x), *x.shape[1:]))  # the only form that gloo takes
            dist.all_gather_single(whole, x.contiguous(), group=group)
            return whole.unflatten(0, (group.size(), len(x)))

        return all_gather


_MESHES: dict[tuple, tuple[DeviceMesh, dist.ProcessGroup, Mapping[str, DeviceMesh]]] = {}


def make_mesh(layout: Layout, device: torch.device) -> Mesh:
    """Arrange the first `layout.world_size` ranks as a grid. Every rank of the world calls it, in the same order.

    Process groups are made once for each shape and kept. Raises: WorldError when there are too few processes.
    """
    started = dist.get_world_size() if dist.is_initialized() else 1
    if layout.world_size > started:
        raise WorldError(
            f"layout {layout} needs {layout.world_size} processes, {started} started: use --nproc {layout.world_size}"
        )
    if not any(axis.is_used(layout) for axis in words.AXES):
        return Mesh(layout, device)
    join_alone(device)
    dims = layout.dims
    key = (*dims.items(), device.type, id(dist.group.WORLD))
    if key not in _MESHES:
        ranks = list(range(layout.world_size))
        world: Any = dist.group.WORLD if layout.world_size == started else dist.new_group(ranks)
        several = {axis.name: own for axis in words.AXES if axis.name not in (own := tuple(axis.dims(layout))) and own}
        several |= layout.joined
        # A dim that is all of its axis gets a group of its own: torch gives all that have every rank the default one,
        # and what is sent along the dim could not be told from the rest of the axis.
        inside, backend = {name for own in several.values() for name in own}, dist.get_backend()
        own_groups = tuple((backend if name in inside and n == started else None, None) for name, n in dims.items())
        places = torch.tensor(ranks).view(*dims.values())
        grid = DeviceMesh(device.type, places, mesh_dim_names=tuple(dims), backend_override=own_groups)
        if grid.get_coordinate() is None:
            _groups_of_others(list(several.values()), dims)
            _MESHES[key] = (grid, world, {})
        else:
            _MESHES[key] = (grid, world, {name: grid[own]._flatten(name) for name, own in several.items()})
    return Mesh(layout, device, *_MESHES[key])


def _groups_of_others(several: list[tuple[str, ...]], dims: Mapping[str, int]) -> None:
    """Take part in making the groups along several dims each, of a grid that this rank has no place in.

    torch makes none there: a slice of a grid needs the rank to be in it, and a group needs every rank to ask for it.
    """
    ranks = torch.arange(math.prod(dims.values())).view(*dims.values())
    for own in several:
        size, last = math.prod(dims[name] for name in own), [list(dims).index(name) for name in own]
        for row in ranks.movedim(last, list(range(-len(own), 0))).reshape(-1, size):
            dist.new_group(row.tolist())


def forget_meshes() -> None:
    """Forget the groups that were made: they end with the process group of the run."""
    _MESHES.clear()


def join_alone(device: torch.device) -> None:
    """Make a process group of this process alone where it has joined none: FSDP2 and DeepSpeed want one."""
    if not dist.is_initialized():
        wait_for_gloo()
        dist.init_process_group(default_backend(device.type), store=dist.HashStore(), rank=0, world_size=1)


def default_backend(device_type: str) -> str:
    """Return the process-group backend that is used when none is requested."""
    return "nccl" if device_type == "cuda" else "gloo"
