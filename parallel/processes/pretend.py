"""A world of a single process, in which it is any rank of any layout: nothing is sent, and tensors have no values.

Process groups are those of torch's `fake` backend, whose collectives return at once, and tensors are fake ones, which
have shapes, dtypes and storages of a size, and take no memory. All that is built and run on such a mesh is the code
that runs on a real one.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from paralab.errors import WorldError
from paralab.layout import Layout
from paralab.processes import cluster
from paralab.processes.mesh import Mesh, make_mesh

FAKE = "fake"  # torch's backend of which every collective returns at once: it sends nothing


@contextlib.contextmanager
def pretended(layout: Layout, rank: int) -> Iterator[Mesh]:
    """Be one rank of a layout: yield its mesh, on which nothing is sent and tensors have no values.

    Raises: WorldError in a process that has met others, whose groups would be lost.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        raise WorldError("a dry run in a process that has met others: start it as one process, without a launcher")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    hook = sys.excepthook  # of which torch makes one that prints the rank
    _leave()
    dist.init_process_group(FAKE, store=FakeStore(), rank=rank, world_size=layout.world_size)
    try:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        yield replace(make_mesh(layout, torch.device("cpu")), tensors=lambda: _without_values(fake))
    finally:
        _leave()
        sys.excepthook = hook


def _leave() -> None:
    """Close the process groups. What DTensors keep by their mesh would bring back those of the last rank."""
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    cluster.leave()
    _clear_sharding_prop_cache()


@contextlib.contextmanager
def _without_values(fake: FakeTensorMode) -> Iterator[None]:
    with fake, _FirstGradient(), _whole_shapes_unseen():
        yield


@contextlib.contextmanager
def _whole_shapes_unseen() -> Iterator[None]:
    """Let nobody count the tensors on which DTensor tries an operation, when it comes first, to learn its shapes.

    They are as large as the whole, and gone before the step that a real run looks at.
    """
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    tried = ShardingPropagator._propagate_tensor_meta_non_cached

    def unseen(propagator: ShardingPropagator, schema: Any) -> Any:
        with _disable_current_modes():
            return tried(propagator, schema)

    setattr(ShardingPropagator, "_propagate_tensor_meta_non_cached", unseen)  # noqa: B010 (as in measure.memory)
    try:
        yield
    finally:
        setattr(ShardingPropagator, "_propagate_tensor_meta_non_cached", tried)  # noqa: B010


class _FirstGradient(TorchDispatchMode):
    """Lets the gradient of a loss by itself be known to be 1, which models may look at."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten.ones_like.default and not args[0].ndim:
            return torch.tensor(1.0, dtype=args[0].dtype, device=args[0].device)
        return func(*args, **(kwargs or {}))
