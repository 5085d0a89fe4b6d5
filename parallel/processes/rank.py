"""Which rank a process is, read from the environment, where launchers say it; the one place that reads it.

Only `paralab.options.heading`, which loads nothing heavy, looks by itself whether it is in the first process.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from paralab.errors import WorldError
from paralab.processes import meeting
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
    starts_again: bool = False  # whether the launcher may start the same command again, after a failure
    attempt: int = 0  # how often the launcher has started all of them before, where it is alone and says so
    local_told: bool = True  # whether the launcher says how many processes it starts on this machine

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Rank":
        """Read the variables of torchrun, deepspeed, accelerate, Slurm or MPI; a plain process is rank 0 of 1.

        Raises: WorldError where they hold no numbers, or a rank that there is not.
        """
        env = {name: value for name, value in env.items() if value}  # one that is empty says nothing
        if told := _whole(env):
            _check_alike(env, told)
            by_hand = told[0][1] == _TORCH[0] and _TORCH[2] not in env
            if by_hand and len(told) > 1 and env[told[1][2][1]] == env[_TORCH[1]]:
                del told[0]  # a script said RANK and WORLD_SIZE, and its launcher the local rank as well
            launcher, _, names = told[0]
            return cls._launched(env, launcher, names)
        _check_whole(env)
        # accelerate starts a single process without rank variables
        return cls(0, 1, 0, 1, "accelerate" if _ACCELERATE in env else "python")

    @classmethod
    def _launched(cls, env: Mapping[str, str], launcher: Launcher, names: tuple[str, ...]) -> "Rank":
        own, world = meeting.number(env, names[0]), meeting.number(env, names[1])
        if own >= world and env.get("SLURM_HET_SIZE", "1") != "1":  # its ranks go on over the components
            raise WorldError(
                f"this step of Slurm spans components of a heterogeneous job ({names[0]}={own}, {names[1]}="
                f"{world}): start it in one of them with srun --het-group=0, or set RANK, WORLD_SIZE, "
                "LOCAL_RANK and MASTER_ADDR"
            )
        if own >= world:
            raise WorldError(
                f"the environment says {names[0]}={own} and {names[1]}={world}, and ranks count from 0 to "
                f"{names[1]} - 1: correct them, or type env -u {names[0]} before the command where no "
                "launcher starts it"
            )
        local = meeting.number(env, names[2]) if names[2] in env else 0
        here = next((meeting.number(env, name) for name in names[3:] if name in env), None)
        if launcher == "slurm":
            here = here or meeting.slurm_tasks_here(env)
        if here and not local < here <= world:
            if launcher != "slurm":
                told = next(name for name in names[3:] if name in env)
                raise WorldError(
                    f"the environment says {names[2]}={local}, {told}={here} and {names[1]}={world}, which "
                    f"cannot be together: correct them, or type env -u {told} before the command"
                )
            here = None  # what a job has asked for, of which this step has a part
        return cls(
            own,
            world,
            local,
            here or world,
            launcher,
            launch=env.get(LAUNCH),
            elastic=env.get(ELASTIC) == "1",
            attempt=meeting.number(env, _RESTARTS) if _RESTARTS in env and env.get("GROUP_WORLD_SIZE") == "1" else 0,
            starts_again=LAUNCH in env or env.get(_MAX_RESTARTS, "0") != "0",
            local_told=here is not None,
        )

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


LAUNCH, ELASTIC = "PARALAB_LAUNCH", "PARALAB_ELASTIC"  # set by `paralab node`
ALARM = "PARALAB_ALARM"  # likewise: a file, in which it says why it ends its processes, once it does
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
_MAX_RESTARTS = "TORCHELASTIC_MAX_RESTARTS"  # of torchrun, and of accelerate, which is one
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
    (
        "mpi",
        "MV2_COMM_WORLD_RANK",  # MVAPICH
        ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ),
    ("mpi", "MPI_LOCALRANKID", ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")),  # MPICH, Intel MPI
    ("mpi", "FLUX_TASK_RANK", ("FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID")),
    ("mpi", "PALS_RANKID", ("PALS_RANKID", "PMI_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE")),  # mpiexec of HPE Cray
    (
        "mpi",
        "JSM_NAMESPACE_RANK",  # jsrun
        ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"),
    ),
    ("slurm", "SLURM_STEP_NUM_TASKS", ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")),
    ("slurm", "SLURM_PROCID", ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")),
    ("mpi", "PMI_RANK", ("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE")),
)


def is_set_by_hand(env: Mapping[str, str] = os.environ) -> bool:
    """Return whether RANK and WORLD_SIZE are set without the mark of a launcher that sets them."""
    marker = next((marker for _, marker, names in _LAUNCHERS if env.get(marker) and names is _TORCH), None)
    return marker == _TORCH[0] and bool(env.get(_TORCH[1]))


def _whole(env: Mapping[str, str]) -> list[tuple[Launcher, str, tuple[str, ...]]]:
    """Return those of _LAUNCHERS that say a rank and of how many, the one that counts first."""
    return [
        (launcher, marker, names)
        for launcher, marker, names in _LAUNCHERS
        if marker in env and names[0] in env and names[1] in env
        if launcher != "slurm" or meeting.is_slurm_step(env)  # a batch script or a shell starts its own processes
    ]


def _check_alike(env: Mapping[str, str], told: list[tuple[Launcher, str, tuple[str, ...]]]) -> None:
    """Raise WorldError where RANK and WORLD_SIZE, set by hand, are not what Slurm or MPI says.

    Left over from another run, they would make each process a run of its own, or let all of them wait for one that
    does not come. torchrun, deepspeed and accelerate may be started by Slurm or MPI, and set both themselves.
    """
    by_hand = told[0][1] == _TORCH[0]
    if told[0][2] is _TORCH and not by_hand:
        return
    own_by_hand, world_by_hand = (meeting.number(env, name) if name in env else None for name in _TORCH[:2])
    for names in [names for _, _, names in told if names is not _TORCH][:1]:
        own, world = meeting.number(env, names[0]), meeting.number(env, names[1])
        if world_by_hand is None or world_by_hand == world:
            alike = own_by_hand in (None, own)
        else:  # each of these processes may start several, and say so
            alike = by_hand and world_by_hand > world
        if not alike:
            said = [name for name in _TORCH[:2] if name in env]
            raise WorldError(
                f"the environment says {' and '.join(f'{name}={env[name]}' for name in said)}, and {names[0]}={own} "
                f"of {names[1]}={world}: set them alike, or type env {' '.join(f'-u {name}' for name in said)} before "
                "the command"
            )


def _check_whole(env: Mapping[str, str]) -> None:
    """Raise WorldError for a process that is told a part: it would train all alone, or start processes of its own."""
    for launcher, _, names in _LAUNCHERS:
        if names[0] in env and names[1] not in env and (launcher != "slurm" or meeting.number(env, names[0]) > 0):
            raise WorldError(
                f"the environment says {names[0]}={env[names[0]]} and nothing of {names[1]}: set it to the number of "
                f"processes, or type env -u {names[0]} before the command where no launcher starts it"
            )
        of_a_job = launcher == "slurm" or names[0] == "FLUX_TASK_RANK"  # in whose shells the size is set
        for name in () if of_a_job or names[0] in env else names[1:4]:
            alone = 1 if "SIZE" in name or "NRANKS" in name else 0  # what is so of a process that is alone
            if name in env and meeting.number(env, name) != alone:
                raise WorldError(
                    f"the environment says {name}={env[name]} and nothing of {names[0]}: set {names[0]} to the rank of "
                    f"this process, or type env -u {name} before the command where no launcher starts it"
                )
    if "PMIX_RANK" in env and "SLURM_PROCID" not in env:  # prterun and its like: of how many only PMIx itself knows
        raise WorldError(
            f"the environment says PMIX_RANK={env['PMIX_RANK']} and not of how many: start it with mpirun or torchrun, "
            "or type env -u PMIX_RANK before the command where no launcher starts it"
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
