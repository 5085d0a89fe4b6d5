"""The processes of one run: rank and world size, the process group, and the mesh of axes.

`Rank.from_env` reads what launchers say of ranks, and every module but `heading` (which loads nothing heavy) asks it.
`join` makes the process group of a run, `make_mesh` those of its axes. Elsewhere: `meeting` finds where the ranks of
Slurm and MPI meet, `launch` starts the processes of this machine, and checkpoints, the training loop and the engines
of others make further groups of ranks that have met.
"""

import contextlib
import ctypes
import mmap
import os
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from paralab.errors import WorldError
from paralab.layout import Layout, words
from paralab.processes import meeting
from paralab.processes.allowed import affinity
from paralab.processes.liveness import Liveness
from paralab.processes.meeting import Launcher


@dataclass(frozen=True)
class Rank:
    """One process among those that were started, and what started it."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    launcher: Launcher
    launch: str | None = None  # names the launcher of several nodes that may start the run again
    elastic: bool = False  # whether it does so with the nodes that are there
    local_told: bool = True  # whether the launcher says how many processes it starts on this machine

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Rank":
        """Read the variables of torchrun, deepspeed, accelerate, Slurm or MPI; a plain process is rank 0 of 1.

        Raises: WorldError where they hold no numbers, or a rank that there is not.
        """
        env = {name: value for name, value in env.items() if value}  # one that is empty says nothing
        for launcher, marker, names in _LAUNCHERS:
            if launcher == "slurm" and not meeting.is_slurm_step(env):
                continue  # a batch script or a shell: it starts its own processes
            if marker in env and names[0] in env and names[1] in env:
                own, world = meeting.number(env, names[0]), meeting.number(env, names[1])
                if own >= world:
                    raise WorldError(
                        f"the environment says {names[0]}={own} and {names[1]}={world}, and ranks count from 0 to "
                        f"{names[1]} - 1: correct them, or type env -u {names[0]} before the command where no "
                        "launcher starts it"
                    )
                local = meeting.number(env, names[2]) if names[2] in env else 0
                here = next((meeting.number(env, name) for name in names[3:] if name in env), None)
                here = here or meeting.slurm_tasks_here(env)
                return cls(
                    own,
                    world,
                    local,
                    here or world,
                    launcher,
                    launch=env.get(LAUNCH),
                    elastic=env.get(ELASTIC) == "1",
                    local_told=here is not None,
                )
        # accelerate starts a single process without rank variables
        return cls(0, 1, 0, 1, "accelerate" if _ACCELERATE in env else "python")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The accelerator that belongs to this process, or the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", 0 if self._sees_its_own_gpu else self.local_rank)

    @property
    def _sees_its_own_gpu(self) -> bool:
        """Whether the launcher shows every process one GPU alone, as Slurm does with --gpus-per-task 1."""
        restricted = self.launcher in ("slurm", "mpi") and bool(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return restricted and torch.cuda.device_count() == 1

    def check_gpus(self, nproc: int) -> None:
        """Raise WorldError where the processes of a run on this machine would have to share its GPUs.

        nproc: of the whole run, for a process that no launcher has started.
        """
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        told = self.local_world_size if self.local_told else self.local_rank + 1  # or more
        processes = nproc if self.launcher == "python" else told
        if not gpus or processes <= gpus or self._sees_its_own_gpu:
            return
        instead = "use --strategy single, one process"
        if self.launcher != "python":
            instead = f"start {gpus} on each machine, such as {start_line(self.launcher, gpus, gpus=True)}"
        elif gpus > 1:
            instead = f"use --nproc {gpus} or fewer"
        raise WorldError(
            f"{processes} processes on a machine with {gpus} GPU{'s' if gpus > 1 else ''}, and each needs its own: "
            f"{instead}, or type CUDA_VISIBLE_DEVICES= before the command to run on the CPU"
        )


FAKE = "fake"  # torch's backend of which every collective returns at once: it sends nothing
LAUNCH, ELASTIC = "PARALAB_LAUNCH", "PARALAB_ELASTIC"  # set by `paralab node`
ALARM = "PARALAB_ALARM"  # likewise: a file, in which it says why it ends its processes, once it does
_ACCELERATE = "ACCELERATE_MIXED_PRECISION"
_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")  # the last is DeepSpeed's
# (launcher, a variable that only it sets, its names of: rank, world size, local rank, local world size (any of them))
_LAUNCHERS: tuple[tuple[Launcher, str, tuple[str, ...]], ...] = (
    ("accelerate", _ACCELERATE, _TORCH),
    ("torchrun", "TORCHELASTIC_RUN_ID", _TORCH),
    ("deepspeed", "CROSS_SIZE", _TORCH),
    ("torchrun", "RANK", _TORCH),
    (
        "mpi",
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ),
    ("mpi", "MPI_LOCALRANKID", ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")),  # MPICH, Intel MPI
    ("slurm", "SLURM_STEP_NUM_TASKS", ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")),
    ("slurm", "SLURM_PROCID", ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")),
    ("mpi", "PMI_RANK", ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")),
)


def start_line(launcher: Launcher, nproc: int, *, gpus: bool) -> str:
    """Return what to type to start that many processes on this machine."""
    cpu = "" if gpus else "ACCELERATE_USE_CPU=true "
    lines: Mapping[Launcher, str] = {
        "python": f"--nproc {nproc}",
        "torchrun": f"torchrun --nproc-per-node {nproc} benchmarks/run.py ...",
        "deepspeed": f"deepspeed --num_gpus {nproc} benchmarks/run.py ...",
        "accelerate": f"{cpu}accelerate launch --multi_gpu --num_processes {nproc} benchmarks/run.py ...",
        "slurm": f"srun --ntasks {nproc} python benchmarks/run.py ...",
        "mpi": f"mpirun -n {nproc} python benchmarks/run.py ...",
    }
    return lines[launcher]


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
        grid = DeviceMesh(device.type, torch.tensor(ranks).view(*dims.values()), mesh_dim_names=tuple(dims))
        several = {axis.name: own for axis in words.AXES if axis.name not in (own := tuple(axis.dims(layout))) and own}
        several |= layout.joined
        _MESHES[key] = (grid, world, {name: grid[own]._flatten(name) for name, own in several.items()})
    return Mesh(layout, device, *_MESHES[key])


def join_alone(device: torch.device) -> None:
    """Make a process group of this process alone where it has joined none: FSDP2 and DeepSpeed want one."""
    if not dist.is_initialized():
        dist.init_process_group(default_backend(device.type), store=dist.HashStore(), rank=0, world_size=1)


@cache
def keep_pages(processes: int = 1) -> None:
    """Let glibc keep the pages that tensors free, and let them be huge ones.

    A training step frees and asks again for the same gigabytes; with the default settings each one is zeroed by
    the kernel anew. Takes effect for allocations after the call. Does nothing where there is no glibc.
    processes: how many on this machine call it.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, -1)  # never, mallopt(3)
    libc.mallopt(m_top_pad, 64 << 20)
    if _addresses_are_free():
        size = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // (2 * processes)
        libc.malloc.restype = ctypes.c_void_p
        start = libc.malloc(ctypes.c_size_t(size))  # stays with glibc, and takes no memory until it is used
        if start:
            begin = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size - mmap.PAGESIZE), mmap.MADV_HUGEPAGE)
            libc.free(ctypes.c_void_p(start))


def _addresses_are_free() -> bool:
    """Return whether addresses without memory behind them are unlimited: no `ulimit -v`, no strict overcommit."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return False
    return Path("/proc/sys/vm/overcommit_memory").read_text().strip() != "2"


def default_threads(local_world_size: int) -> int:
    """Return the CPU threads of each process: the cores this process may use, shared evenly."""
    return max(1, affinity() // local_world_size)


def default_backend(device_type: str) -> str:
    """Return the process-group backend that is used when none is requested."""
    return "nccl" if device_type == "cuda" else "gloo"


def join(
    rank: Rank,
    *,
    threads: int | None = None,
    backend: str | None = None,
    init_method: str = "env://",
    timeout_s: float = 1800.0,
    recordings: Path | None = None,
) -> None:
    """Prepare this process and meet the others. `leave` undoes it.

    timeout_s: how long a rank waits for another one, now and in every collective. recordings: compare what the ranks
    call in every collective, and write flight recordings there when the run fails. Raises: WorldError.
    """
    global _liveness, _joined
    keep_pages(rank.local_world_size)
    torch.set_num_threads(threads or default_threads(rank.local_world_size))
    if rank.device.type == "cuda":
        torch.cuda.set_device(rank.device)
    if rank.world_size == 1:
        return
    timeout = timedelta(seconds=timeout_s)
    # new groups do not take over the timeout of the first one
    dist.distributed_c10d.default_pg_timeout = dist.distributed_c10d.default_pg_nccl_timeout = timeout
    if recordings is not None:
        _debug_collectives()
    if init_method == "env://" and rank.launcher in ("slurm", "mpi"):
        alone_here = rank.local_told and rank.local_world_size == rank.world_size
        os.environ.update(meeting.meeting_point(os.environ, launcher=rank.launcher, on_one_machine=alone_here))
    if init_method == "env://":
        meeting.check_meeting_point(os.environ)
    try:
        store, _, _ = next(dist.rendezvous(init_method, rank.rank, rank.world_size, timeout=timeout))
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        raise WorldError(
            f"the {rank.world_size} ranks have not met at {where}: {str(error).splitlines()[0]}: start all of them,"
            " check MASTER_ADDR, take another MASTER_PORT if it is in use, or raise --timeout-s"
        ) from error
    if _joined:  # keys of the processes' first meeting are still in the store of a launcher
        store = dist.PrefixStore(f"meeting {_joined}", store)
    _joined += 1
    _liveness = Liveness(store, rank.rank, rank.world_size, recordings=recordings)
    _liveness.join(timeout_s)
    backend = backend or default_backend(rank.device.type)
    store = dist.PrefixStore("default_pg", store)
    dist.init_process_group(backend, store=store, rank=rank.rank, world_size=rank.world_size, timeout=timeout)


def _debug_collectives() -> None:
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # collectives that are kept
    dist.set_debug_level(dist.DebugLevel.DETAIL)
    # under this level DDP's own statistics end in a segmentation fault with gloo (torch 2.13)
    dist.Logger.set_construction_data_and_log = lambda *facts: None  # type: ignore[method-assign]


_liveness: Liveness | None = None
_joined = 0  # how often this process has met the others


def liveness() -> Liveness | None:
    """Return the liveness of the ranks that this process has joined; None alone."""
    return _liveness


def leave() -> None:
    """Close the process groups; gloo aborts at exit without it."""
    global _liveness
    _MESHES.clear()
    if _liveness is not None:
        _liveness.mark("left")
        _liveness = None
    if dist.is_initialized():
        dist.destroy_process_group()
