"""Count what one training step communicates, by mesh axis and operation.

The ledger watches calls on their way through torch's dispatcher, so it sees the all-reduces of DDP's C++ reducer,
FSDP2, DTensor, optimizers, pipelines and point-to-point calls alike, and never waits for any of them. A dispatch
mode slows every operation down: enter it around one extra step that is not timed.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import GroupName, _resolve_process_group
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from paralab.axes.forms import ring_bytes, wire_bytes
from paralab.measure.axis_names import AxisNames
from paralab.measure.calls import Call


@dataclass(frozen=True)
class CommRow:
    """Calls and bytes of one operation over one axis. `ranks` is the size of the group.

    ring_bytes, wire_bytes: that a rank sends, by ring algorithms and with its backend (paralab.axes.forms).
    """

    axis: str
    op: str
    ranks: int
    calls: int
    payload_bytes: int
    ring_bytes: Fraction
    wire_bytes: Fraction


@dataclass
class _Count:
    calls: int = 0
    payload_bytes: int = 0
    wire_bytes: Fraction = Fraction(0)


@dataclass(frozen=True)
class _Kind:
    op: str
    buffers: str | None  # the argument that holds the payload
    times_ranks: bool = False  # the argument is one rank's part of it


# Every collective of the c10d and functional namespaces in torch 2.13, by schema name.
_KINDS = {
    "c10d::allreduce_": _Kind("all_reduce", "tensors"),
    "c10d::allreduce_coalesced_": _Kind("all_reduce", "tensors"),
    "c10d::allgather_": _Kind("all_gather", "output_tensors"),
    "c10d::_allgather_base_": _Kind("all_gather", "output_tensor"),
    "c10d::allgather_coalesced_": _Kind("all_gather", "output_lists"),
    "c10d::allgather_into_tensor_coalesced_": _Kind("all_gather", "outputs"),
    "c10d::reduce_scatter_": _Kind("reduce_scatter", "input_tensors"),
    "c10d::_reduce_scatter_base_": _Kind("reduce_scatter", "input_tensor"),
    "c10d::reduce_scatter_tensor_coalesced_": _Kind("reduce_scatter", "inputs"),
    "c10d::alltoall_": _Kind("all_to_all", "input_tensors"),
    "c10d::alltoall_base_": _Kind("all_to_all", "input"),
    "c10d::broadcast_": _Kind("broadcast", "tensors"),
    "c10d::reduce_": _Kind("reduce", "tensors"),
    "c10d::gather_": _Kind("gather", "input_tensors", times_ranks=True),
    "c10d::scatter_": _Kind("scatter", "output_tensors", times_ranks=True),
    "c10d::send": _Kind("send", "tensors"),
    "c10d::recv_": _Kind("recv", "tensors"),
    "c10d::recv_any_source_": _Kind("recv", "tensors"),
    "c10d::barrier": _Kind("barrier", None),
    "c10d::monitored_barrier_": _Kind("barrier", None),
    "_c10d_functional::all_reduce": _Kind("all_reduce", "input"),
    "_c10d_functional::all_reduce_": _Kind("all_reduce", "input"),
    "_c10d_functional::all_reduce_coalesced": _Kind("all_reduce", "inputs"),
    "_c10d_functional::all_reduce_coalesced_": _Kind("all_reduce", "inputs"),
    "_c10d_functional::all_gather_into_tensor": _Kind("all_gather", "input", times_ranks=True),
    "_c10d_functional::all_gather_into_tensor_out": _Kind("all_gather", "input", times_ranks=True),
    "_c10d_functional::all_gather_into_tensor_coalesced": _Kind("all_gather", "inputs", times_ranks=True),
    "_c10d_functional::reduce_scatter_tensor": _Kind("reduce_scatter", "input"),
    "_c10d_functional::reduce_scatter_tensor_out": _Kind("reduce_scatter", "input"),
    "_c10d_functional::reduce_scatter_tensor_coalesced": _Kind("reduce_scatter", "inputs"),
    "_c10d_functional::all_to_all_single": _Kind("all_to_all", "input"),
    "_c10d_functional::broadcast": _Kind("broadcast", "input"),
    "_c10d_functional::broadcast_": _Kind("broadcast", "input"),
    "_c10d_functional::isend": _Kind("send", "tensor"),
    "_c10d_functional::irecv": _Kind("recv", "tensor"),
    "_dtensor::shard_dim_alltoall": _Kind("all_to_all", "input"),
}
_SILENT = {"c10d::check_for_nan", "_c10d_functional::wait_tensor", "_c10d_functional::_wrap_tensor_autograd"}
_NAMESPACES = {"c10d", "_c10d_functional", "c10d_functional", "_dtensor"}


class CommLedger(TorchDispatchMode):
    """Count calls, payload, ring and wire bytes while entered.

    axes: mesh axis -> its process group on this rank (`AxisNames`). steps: how many run while it is entered; what is
    counted is the mean of them. backend: whose wire bytes are counted, by default that of each group. on_call: is
    told of each call before it begins.

    Raises: NotImplementedError, inside the step, for a collective that the ledger cannot size: a silent gap
    would make every total wrong.
    """

    def __init__(
        self,
        axes: Mapping[str, ProcessGroup],
        *,
        steps: int = 1,
        backend: str | None = None,
        on_call: Callable[[Call], object] = lambda call: None,
    ) -> None:
        super().__init__()
        self._on_call = on_call
        self._steps, self._backend = steps, backend
        self._names = AxisNames(axes)
        self._counts: dict[tuple[str, str, int], _Count] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # let DTensor run first: its collectives come back here as local ones
        kwargs = kwargs or {}
        if func.namespace in _NAMESPACES:
            self._count(func, args, kwargs)
        return func(*args, **kwargs)  # the mode is off in here: a functional collective is not counted again

    def rows(self) -> list[CommRow]:
        """Return what was counted, sorted by axis and operation."""
        return [
            CommRow(
                axis,
                op,
                ranks,
                round(count.calls / self._steps),
                round(Fraction(count.payload_bytes, self._steps)),
                ring_bytes(op, Fraction(count.payload_bytes, self._steps), ranks),
                count.wire_bytes / self._steps,
            )
            for (axis, op, ranks), count in sorted(self._counts.items(), key=lambda item: item[0])
        ]

    def wire_bytes(self, *, axis: str | None = None, op: str | None = None) -> Fraction:
        """Return the bytes this rank sends with its backend, over one axis or operation or over all."""
        return sum((row.wire_bytes for row in self._chosen(axis, op)), Fraction(0))

    def ring_bytes(self, *, axis: str | None = None, op: str | None = None) -> Fraction:
        """Return the same by ring algorithms."""
        return sum((row.ring_bytes for row in self._chosen(axis, op)), Fraction(0))

    def _chosen(self, axis: str | None, op: str | None) -> Iterator[CommRow]:
        return (row for row in self.rows() if axis in (None, row.axis) and op in (None, row.op))

    def _count(self, func: Any, args: tuple, kwargs: dict) -> None:
        name = func._schema.name
        if name in _SILENT:
            return
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        if name == "_c10d_functional::batch_p2p_ops":
            for op, tensor in zip(given["op_list"], given["tensors"], strict=True):
                self._add({"isend": "send", "irecv": "recv"}[op], _group(given), tensor, 1)
            return
        if name not in _KINDS:
            raise NotImplementedError(f"the communication ledger does not know {name}: add it to _KINDS in {__name__}")
        kind, group = _KINDS[name], _group(given)
        buffers, times = given[kind.buffers] if kind.buffers else (), group.size() if kind.times_ranks else 1
        self._add(kind.op, group, buffers, times, splits=given.get("input_split_sizes") or ())

    def _add(self, op: str, group: ProcessGroup, buffers: Any, times: int, *, splits: Sequence[int] = ()) -> None:
        axis = self._names.of(group)
        count = self._counts.setdefault((axis, op, group.size()), _Count())
        payload_bytes = times * sum(tensor.numel() * tensor.element_size() for tensor in _tensors(buffers))
        self._on_call(Call(axis, op, group.size(), payload_bytes, time.monotonic()))
        count.calls += 1
        count.payload_bytes += payload_bytes
        if sum(splits):  # of an all-to-all whose parts differ: what is for this rank itself stays at home
            count.wire_bytes += payload_bytes * (1 - Fraction(splits[group.rank()], sum(splits)))
        else:
            backend = self._backend or dist.get_backend(group)
            count.wire_bytes += wire_bytes(op, payload_bytes, group.size(), backend=backend)


def _group(given: Mapping[str, Any]) -> ProcessGroup:
    group = given["process_group"] if "process_group" in given else given["group_name"]
    if isinstance(group, torch.ScriptObject):
        return ProcessGroup.unbox(group)
    return _resolve_process_group(GroupName(group)) if isinstance(group, str) else group


def _tensors(buffers: Any) -> Iterator[Tensor]:
    if isinstance(buffers, Tensor):
        yield buffers
    else:
        for part in buffers:
            yield from _tensors(part)
