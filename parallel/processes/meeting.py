"""Where the ranks of `srun` and `mpirun` connect: these launchers say which rank a process is, but not where rank 0 is.

Slurm names its nodes, and its first task is on the first one. MPI says whether all processes are on this machine;
where they are not, nobody but the user knows.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Literal

from paralab.errors import WorldError

Launcher = Literal["python", "torchrun", "deepspeed", "accelerate", "slurm", "mpi"]  # what started a process

_FIRST_PORT, _PORTS = 15000, 17000  # below the ports that Linux hands out by itself (from 32768 on)
_DEFAULT_PORT = 29500  # torch's, where nothing tells two jobs apart
# what names a job, and a step of it, the same on all its ranks
_JOBS = (
    ("SLURM_JOB_ID", "SLURM_STEP_ID"),
    ("PMIX_NAMESPACE",),
    ("OMPI_MCA_ess_base_jobid",),
    ("PMI_JOBID",),
    ("FLUX_JOB_ID",),
    ("PALS_APID",),
)
_NODELISTS = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
_DIGITS = 20  # of any number that a launcher writes
# SLURM_BATCH_SCRIPT, SLURM_INTERACTIVE_STEP and their like are the last numbers of 32 bits (slurm/slurm.h)
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


def is_slurm_step(env: Mapping[str, str]) -> bool:
    """Return whether `srun` started this process as one of several tasks.

    In a batch script and in an interactive shell the rank variables are set as well, for the one process that may
    start others.
    """
    if "SLURM_PROCID" not in env or (slurm_tasks(env) or 1) < 2:
        return False
    step = env.get("SLURM_STEP_ID")
    if step is None:  # as in a batch script; a further task is srun's
        return "SLURM_STEP_NUM_TASKS" in env or number(env, "SLURM_PROCID") > 0
    return step.isdecimal() and len(step) <= _DIGITS and int(step) < _FIRST_SPECIAL_STEP


def number(env: Mapping[str, str], name: str) -> int:
    """Return the whole number in a variable. Raises: WorldError when it holds something else."""
    written = env[name].strip()
    if not written.isdecimal() or len(written) > _DIGITS:
        raise WorldError(
            f"the environment says {name}={env[name]!r}, and a number from 0 is needed: set it to one, or type "
            f"env -u {name} before the command where no launcher starts it"
        )
    return int(written)


def slurm_tasks(env: Mapping[str, str]) -> int | None:
    """Return the number of tasks of this step, or else of the job."""
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
    return next((number(env, name) for name in names if name in env), None)


def slurm_tasks_here(env: Mapping[str, str]) -> int | None:
    """Return Slurm's tasks on this node: SLURM_TASKS_PER_NODE is written as "4(x2),3" (sbatch manual).

    Raises: WorldError where it is written otherwise.
    """
    name = next((x for x in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE") if x in env), None)
    if name is None or "SLURM_NODEID" not in env:
        return None
    node = number(env, "SLURM_NODEID")
    for part in env[name].split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:\(x([0-9]{1,9})\))?\s*", part)
        if match is None:
            raise WorldError(
                f"the environment says {name}={env[name]!r}, and numbers of tasks such as 4(x2),3 are needed: "
                "correct it"
            )
        node -= int(match[2] or 1)
        if node < 0:
            return int(match[1])
    return None


def meeting_point(env: Mapping[str, str], *, launcher: Launcher, on_one_machine: bool) -> dict[str, str]:
    """Return MASTER_ADDR and MASTER_PORT, as far as they are missing.

    on_one_machine: whether the launcher says that all ranks are on this one.
    Raises: WorldError where no variable tells the address.
    """
    missing = {}
    if "MASTER_ADDR" not in env:
        missing["MASTER_ADDR"] = _address(env, launcher=launcher, on_one_machine=on_one_machine)
    if "MASTER_PORT" not in env:
        missing["MASTER_PORT"] = str(_port(env))
    return missing


def check_meeting_point(env: Mapping[str, str]) -> None:
    """Raise WorldError where ranks that a launcher started are not told where they meet."""
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]:
        raise WorldError(
            f"RANK and WORLD_SIZE are set without {' and '.join(missing)}: type export MASTER_ADDR=NAME "
            "MASTER_PORT=29500 with the machine of rank 0 before the command, start it with torchrun, or type env -u "
            "RANK -u WORLD_SIZE before it where no launcher starts it"
        )
    if not 0 < number(env, "MASTER_PORT") < 1 << 16:
        raise WorldError(f"MASTER_PORT={env['MASTER_PORT']} is no port: set it to a number from 1 to 65535")


def _address(env: Mapping[str, str], *, launcher: Launcher, on_one_machine: bool) -> str:
    if on_one_machine:
        return "127.0.0.1"
    name = next((name for name in _NODELISTS if env.get(name)), None)
    if name is not None:
        try:
            return next(hosts(env[name]))
        except (ValueError, StopIteration):
            raise WorldError(
                f"{name}={env[name]!r} is no list of nodes such as gpu[01-03,7],login: type export MASTER_ADDR=NAME "
                "with the machine of rank 0 before the command, on all of them"
            ) from None
    raise WorldError(
        f"{launcher} does not say on which machine rank 0 is: type export MASTER_ADDR=NAME with the name of that "
        "machine before the command, on all of them"
    )


def _port(env: Mapping[str, str]) -> int:
    """Return a port that is the same for all ranks of a job step, and mostly another for the next one."""
    for names in _JOBS:
        if names[0] in env:
            numbers = re.findall(r"\d+", " ".join(env.get(name, "") for name in names))
            mixed = 0
            for number in numbers:
                mixed = mixed * 31 + int(number[-_DIGITS:])
            return _FIRST_PORT + mixed % _PORTS
    return _DEFAULT_PORT


def hosts(nodelist: str) -> Iterator[str]:
    """Yield the names of a Slurm node list in order: `gpu[01-03,7],login` has gpu01, gpu02, gpu03, gpu7, login.

    Raises: ValueError for what is none, such as a list that was cut off.
    """
    if re.search(r"[\[\]\s]", re.sub(r"\[[^\[\]]*\]", "", nodelist.strip())):
        raise ValueError(nodelist)
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist.strip()):
        yield from _expanded(part)


def _expanded(pattern: str) -> Iterator[str]:
    """Yield the names of one pattern, which may have several brackets (rack[1-2]n[1-4]): the last turns fastest."""
    match = re.search(r"\[([^\]]*)\]", pattern)
    if match is None:
        yield pattern
        return
    before, after = pattern[: match.start()], pattern[match.end() :]
    for span in match[1].split(","):
        first, _, last = span.partition("-")
        for number in range(int(first), int(last or first) + 1):
            for rest in _expanded(after):
                yield f"{before}{number:0{len(first)}d}{rest}"
