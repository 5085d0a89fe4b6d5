"""Data parallelism: every rank holds the whole model and consumes its share of the batch; gradients are averaged.

On its own it is torch's DistributedDataParallel, which overlaps the all-reduce with backward (Li et al. 2020,
arXiv:2006.15704). Beside a tensor or pipeline axis the gradients are averaged once, after the last backward:
DistributedDataParallel knows neither DTensors nor schedules that split backward in two.
"""

import contextlib
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from paralab.axes.data.ranks import replica_dim, replicas, sharding_dims
from paralab.axes.data.unused import without_gradient
from paralab.axes.initialise import local
from paralab.axes.placements import sharded_over
from paralab.models.gathering import Gathering
from paralab.models.spec import Reducing
from paralab.processes.mesh import Mesh

Named = Sequence[tuple[str, Tensor]]  # parameters with their names

BUCKET_BYTES = 25 << 20  # as DistributedDataParallel


def replicate(part: nn.Module, *, mesh: Mesh, unused: bool = False) -> DistributedDataParallel:
    """Wrap a part so that backward averages its gradients. All ranks hold equal values already: nothing is sent.

    unused: whether a step may leave some parameters without a gradient, on some ranks or on all.
    """
    return DistributedDataParallel(
        part,
        process_group=mesh.group(replica_dim(mesh.layout)),
        gradient_as_bucket_view=True,
        forward_sync_buffers=False,
        init_sync=False,
        find_unused_parameters=unused,
    )


def answer(model: DistributedDataParallel, *, mesh: Mesh) -> None:
    """Have the reducer of a wrapped model go on where no collective has a result, which it asks for (a dry run)."""
    model.register_comm_hook(mesh.group(replica_dim(mesh.layout)), _reduced)


def _reduced(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum a bucket of gradients (elements,) over a group."""
    dist.all_reduce(bucket.buffer(), group=group)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def unsynchronised(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return a context in which backward keeps the gradients of a wrapped model to this rank."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def average_gradients(named: Named, *, mesh: Mesh, unused: bool = False) -> None:
    """Average the gradients of parameters that nothing else averages over the data ranks, in buckets.

    named: (name, parameter of any shape) of each. unused: whether some may be without a gradient; one that has none on
    any rank stays so.
    """
    if unused:
        _fill_missing([p for _, p in named if p.requires_grad], mesh=mesh)
    else:
        check_complete(named)
    given = [(p, local(p.grad)) for _, p in named if p.grad is not None]
    _average([grad for p, grad in given if not is_divided(p)], replica_dim(mesh.layout), mesh=mesh)
    if experts := [grad for p, grad in given if is_divided(p)]:
        _average(experts, *sharding_dims(mesh.layout, experts=True), mesh=mesh)


def is_divided(parameter: Tensor) -> bool:
    """Return whether data ranks divide a parameter, of any shape, as experts are: each has others, not a copy."""
    return sharded_over(parameter, ("ep",)) > 1


def _average(grads: list[Tensor], *dims: str, mesh: Mesh) -> None:
    """Sum gradients over dims of the mesh, in place, and divide them by the data ranks, whose tokens they are of."""
    for bucket in _buckets(grads):
        flat = torch.cat([grad.flatten() for grad in bucket])
        for dim in reversed(dims):
            if mesh.size(dim) > 1:
                dist.all_reduce(flat, group=mesh.group(dim))
        flat.div_(replicas(mesh.layout))
        for grad, piece in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
            grad.copy_(piece.view_as(grad))


def check_complete(named: Named) -> None:
    """Raise ConfigError for a parameter, of any shape, without a gradient, which cannot be averaged then."""
    for name, parameter in named:
        if parameter.requires_grad and parameter.grad is None:
            raise without_gradient(name)


def _fill_missing(parameters: Sequence[Tensor], *, mesh: Mesh) -> None:
    """Give zeros to a parameter, of any shape, that has a gradient on another data rank and none here."""
    device = mesh.device
    there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=device)
    dist.all_reduce(there, op=dist.ReduceOp.MAX, group=mesh.group(replica_dim(mesh.layout)))
    for p, somewhere in zip(parameters, there.tolist(), strict=True):
        if somewhere and p.grad is None:
            p.grad = torch.zeros_like(p)


def connect(part: nn.Module, *, mesh: Mesh) -> None:
    """Give modules that reduce or gather over the data ranks (batch statistics, some losses) what does it."""
    for module in part.modules():
        if isinstance(module, Gathering):
            module.all_gather, module.rank, module.ranks = mesh.all_gather("dp"), mesh.rank("dp"), mesh.size("dp")
        if isinstance(module, Reducing) and module.axis == "dp":
            module.all_reduce = mesh.all_reduce("dp")
            module.ranks = mesh.size("dp")


def largest_bucket_bytes(sizes: Iterable[int]) -> int:
    """Return the bytes of the largest bucket that gradients of these sizes, in bytes, are copied into, in order."""
    largest = filled = 0
    for size in sizes:
        filled = size if filled + size > BUCKET_BYTES else filled + size
        largest = max(largest, filled)
    return largest


def _buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if filled and (filled + tensor.nbytes > BUCKET_BYTES or tensor.dtype != buckets[-1][0].dtype):
            buckets.append([])
            filled = 0
        buckets[-1].append(tensor)
        filled += tensor.nbytes
    return [bucket for bucket in buckets if bucket]
