"""The values that a module comes with: rank 0 hands them out, a tensor at a time, and each rank keeps its piece."""

import copy
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paralab.axes.initialise import local, local_slice, local_slices
from paralab.errors import ConfigError
from paralab.processes.mesh import Mesh


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, of whatever shape, by full name; each shared one under each of its names."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


def on_meta(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose tensors have shapes and dtypes and no memory."""
    memo: dict[int, Any] = {}
    for tensor in tensors_of(module).values():
        empty = tensor.detach().to("meta")
        parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if parameter else empty
    return copy.deepcopy(module, memo)


def digest(module: nn.Module) -> str:
    """Return a sha256 of the names, shapes and dtypes of a module."""
    lines = [f"{name} {tuple(x.shape)} {x.dtype}" for name, x in tensors_of(module).items()]
    return hashlib.sha256("\n".join([type(module).__name__, *lines]).encode()).hexdigest()


def make(
    made: nn.Module | Callable[[], nn.Module], *, main: bool, drawn: bool
) -> tuple[nn.Module, Mapping[str, Tensor] | None]:
    """Return a module on the meta device, and on rank 0 the values that it came with, of whole shapes by name.

    made: the module, or the function that makes it. main: whether this is rank 0: the others make it on the meta device
    where that can be done, and let go of its values where not. drawn: whether its values are drawn later, so that rank
    0 needs none either. Raises: ConfigError for what is not a module, or has no values.
    """
    if isinstance(made, nn.Module) or not callable(made):
        module = made
    elif main and not drawn:
        module = made()
    else:
        module = _without_values(made)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"a {type(module).__name__} in the place of the model: give an nn.Module or a function")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(
            f"{type(module).__name__} has no parameter that is trained: give it some, and requires_grad_(True) to "
            "those that are to be"
        )
    values = tensors_of(module) if main and not drawn else None
    empty = [name for name, tensor in (values or {}).items() if tensor.is_meta]
    if empty:
        raise ConfigError(
            f"{empty[0]} is on the meta device and has no value: make the module on the CPU, or give initialise="
            "lambda name, tensor, generator: ... to draw values"
        )
    return on_meta(module), values


def _without_values(make: Callable[[], nn.Module]) -> nn.Module:
    """Make a module on the meta device; for real where it does not allow that, or would keep plain tensors there."""
    try:
        with torch.device("meta"):
            module = make()
    except Exception:  # of the function of a program: what is really wrong with it is raised again here
        return make()
    plain = any(isinstance(x, Tensor) for m in module.modules() for x in vars(m).values())
    return make() if plain else module


def hand_out(part: nn.Module, values: Mapping[str, Tensor] | None, every: Mapping[str, Tensor], mesh: Mesh) -> None:
    """Copy values into a part, in place. Collective: every rank calls it for as many parts.

    values: of any shape, by name; None but on rank 0. every: the tensors of the whole model on the meta device, in one
    order on every rank.
    """
    mine = tensors_of(part)
    with torch.no_grad():
        for name, like in every.items():
            full = _shared(values[name] if values is not None else None, like, mesh)
            if name in mine:
                local(mine[name]).copy_(local_slice(full, mine[name]))


def take(part: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values of whole shapes into a part, in place: this rank's piece of each."""
    with torch.no_grad():
        for name, tensor in tensors_of(part).items():
            local(tensor).copy_(local_slice(values[name], tensor))


def gathered(parts: list[nn.Module], every: Mapping[str, Tensor], mesh: Mesh) -> dict[str, Tensor]:
    """Return the parameters and buffers of the whole model, of whole shapes, on the CPU of every rank. Collective.

    every: as in `hand_out`. A tensor comes from the first rank that holds a piece of it, piece by piece.
    """
    mine: dict[str, Tensor] = {name: x.detach() for part in parts for name, x in tensors_of(part).items()}
    if mesh.world is None:
        return {name: mine[name].cpu().clone() for name in every}
    rank, ranks = dist.get_rank(mesh.world), dist.get_world_size(mesh.world)
    boxes: list[dict[str, Any]] = [{} for _ in range(ranks)]
    dist.all_gather_object(boxes, {name: _box(x) for name, x in mine.items()}, group=mesh.world)
    device = mesh.device if dist.get_backend(mesh.world) == "nccl" else torch.device("cpu")
    found: dict[str, Tensor] = {}
    for name in every:
        holders = {held[name]: number for number, held in reversed(list(enumerate(boxes))) if name in held}
        for (shape, box, dtype), holder in sorted(holders.items(), key=lambda item: item[1]):
            whole = found.setdefault(name, torch.empty(shape, dtype=dtype))
            place = tuple(slice(start, end) for start, end in box)
            if 0 in whole[place].shape:
                continue
            theirs = torch.empty_like(whole[place], device=device)
            piece = local(mine[name]).to(device).contiguous() if holder == rank else theirs
            dist.broadcast(piece, src=holder, group=mesh.world)
            whole[place] = piece.cpu()
    return found


def _box(tensor: Tensor) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...], torch.dtype]:
    """Return the whole shape of a tensor, where in it this rank's piece lies, and its dtype."""
    slices = local_slices(tensor) or tuple(slice(0, size) for size in tensor.shape)
    return tuple(tensor.shape), tuple((part.start, part.stop) for part in slices), tensor.dtype


def _shared(tensor: Tensor | None, like: Tensor, mesh: Mesh) -> Tensor:
    """Return the tensor of rank 0 on every rank: of the shape and dtype of `like`."""
    if mesh.world is None:
        assert tensor is not None
        return tensor
    device = mesh.device if dist.get_backend(mesh.world) == "nccl" else torch.device("cpu")
    if tensor is None:
        full = torch.empty(like.shape, dtype=like.dtype, device=device)
    else:
        full = tensor.detach().to(device).contiguous()
    dist.broadcast(full, src=0, group=mesh.world)
    return full
