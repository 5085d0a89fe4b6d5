"""What the thread that runs a step waits for, on a CPU: when, how long, and over which mesh axis.

It waits in `Work.wait`, which every blocking call of torch.distributed ends in (FSDP2, pipelines, DeepSpeed and our own
strategies use it), in the `wait_tensor` of functional collectives (DTensor), and at the end of backward in the C++
reducer of DistributedDataParallel, which keeps that time itself.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup, Work
from torch.distributed import _functional_collectives as functional
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from paralab.measure.axis_names import AxisNames
from paralab.measure.calls import Wait
from paralab.measure.split import ANY_AXIS

# with which a group begins something, and gives a Work for it: those of torch 2.13
_CALLS = (
    "_allgather_base", "_end_coalescing", "_reduce_scatter_base", "all_gather_single", "all_gather_single_coalesced",
    "all_to_all_single", "allgather", "allgather_coalesced", "allgather_into_tensor_coalesced", "allreduce",
    "allreduce_coalesced", "alltoall", "alltoall_base", "barrier", "broadcast", "gather", "recv", "recv_anysource",
    "reduce", "reduce_scatter", "reduce_scatter_single", "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced", "scatter", "send",
)  # fmt: skip
_REDUCER_SAMPLES = 100  # every so many steps, torch's own setting (kDDPRuntimeLoggingSampleRate)


class Waits:
    """Note what the calling thread waits for between `start` and `stop`. It can be started again.

    axes: mesh axis -> its process group on this rank.
    """

    def __init__(self, axes: Mapping[str, ProcessGroup]) -> None:
        self._names = AxisNames(axes)
        self.seen: list[Wait] = []  # of the last step

    def start(self) -> None:
        """Begin a step."""
        self.seen, self._thread = [], threading.get_ident()
        self._replicas: set[DistributedDataParallel] = set()
        self._axis_of: dict[int, str] = {}  # of the Work at an address; a later one there is seen to begin, too
        self._functional_axis, self._backward_end_s = ANY_AXIS, time.monotonic()
        self._undo = ExitStack()
        for name in _CALLS:
            self._replace(ProcessGroup, name, self._begins)
        self._replace(functional, "_resolve_group", self._names_group)
        self._replace(torch.autograd, "backward", self._notes_end)
        self._replace(Work, "wait", lambda wait: self._waits(wait, self._axis))
        self._replace(functional, "wait_tensor", lambda wait: self._waits(wait, lambda _: self._functional_axis))
        self._undo.callback(register_module_forward_pre_hook(self._meet).remove)

    def stop(self) -> dict[str, float]:
        """End the step. Returns: axis -> seconds waited."""
        self._undo.close()
        end_s = self._backward_end_s  # the reducer waits last
        self.seen += [
            Wait(self._names.of(replica.process_group), end_s - _reducer_wait_s(replica), end_s)
            for replica in self._replicas
        ]
        waits_s: dict[str, float] = {}
        for axis, start_s, end_s in self.seen:
            waits_s[axis] = waits_s.get(axis, 0.0) + end_s - start_s
        return waits_s

    def _replace(self, owner: Any, name: str, changed: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        before = vars(owner)[name]  # not getattr: what it returns of a class in C++ is not bound to instances again
        setattr(owner, name, changed(getattr(owner, name)))
        self._undo.callback(setattr, owner, name, before)

    def _begins(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def begins(group: ProcessGroup, *args: Any, **kwargs: Any) -> Any:
            work = call(group, *args, **kwargs)
            self._axis_of[id(work)] = self._names.of(group)
            return work

        return begins

    def _names_group(self, resolve: Callable[..., Any]) -> Callable[..., Any]:
        def names_group(*args: Any, **kwargs: Any) -> Any:
            group = resolve(*args, **kwargs)
            self._functional_axis = self._names.of(group)
            return group

        return names_group

    def _notes_end(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        def notes_end(*args: Any, **kwargs: Any) -> None:
            backward(*args, **kwargs)
            self._backward_end_s = time.monotonic()

        return notes_end

    def _axis(self, work: Work) -> str:
        return self._axis_of.get(id(work), ANY_AXIS)

    def _waits(self, function: Callable[..., Any], axis_of: Callable[[Any], str]) -> Callable[..., Any]:
        def waits(first: Any, *args: Any, **kwargs: Any) -> Any:
            start_s = time.monotonic()
            try:
                return function(first, *args, **kwargs)
            finally:
                if threading.get_ident() == self._thread:
                    self.seen.append(Wait(axis_of(first), start_s, time.monotonic()))

        return waits

    def _meet(self, module: nn.Module, inputs: Any) -> None:
        if isinstance(module, DistributedDataParallel):
            module._set_ddp_runtime_logging_sample_rate(1)  # else the reducer keeps no times of this step
            self._replicas.add(module)


def _reducer_wait_s(replica: DistributedDataParallel) -> float:
    """Return how long the last backward waited for its all-reduces when all gradients had been computed."""
    assert replica.logger is not None
    replica.logger.set_runtime_stats_and_log()
    times_ns = replica._get_ddp_logging_data()
    replica._set_ddp_runtime_logging_sample_rate(_REDUCER_SAMPLES)
    return (times_ns["backward_comm_time"] - times_ns["backward_compute_comm_overlap_time"]) / 1e9
