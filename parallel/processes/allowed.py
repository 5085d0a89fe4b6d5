"""CPU cores and memory that this process may use: those of the machine, or of its control group if that has less."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from paralab.errors import WorldError

_CGROUP, _MEMBERSHIPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Memory of an idle process on a CPU with torch 2.13, by smaps_rollup, beside what it shares with the others that were
# forked with it.
FORKED_BYTES = 80_000_000
_MEMINFO = Path("/proc/meminfo")
# what a group is charged for and the kernel gives up when memory is needed; v1 does not tell the last (memory.stat)
_CACHES = ("inactive_file", "active_file", "slab_reclaimable")


def cores_allowed(*, cgroup: Path = _CGROUP, memberships: Path = _MEMBERSHIPS) -> float:
    """Return the cores allowed; a quota may be a fraction. Reads cgroup v2 (cpu.max) and v1 (cpu.cfs_quota_us).

    Source: Linux kernel documentation, admin-guide/cgroup-v2 and scheduler/sched-bwc.
    """
    quotas = []
    for v2, folder in _groups("cpu", cgroup, memberships):
        files = ("cpu.max",) if v2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        limit = " ".join(_read(folder / name) for name in files).split()
        if len(limit) == 2 and all(number.isdecimal() for number in limit):  # "max" and -1 are no limit
            quotas.append(int(limit[0]) / int(limit[1]))
    return min([float(affinity()), *quotas])


def affinity() -> int:
    """Return how many cores this process may run on; all of the machine's where the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_allowed_bytes(*, cgroup: Path = _CGROUP, memberships: Path = _MEMBERSHIPS) -> int:
    """Return the memory that all processes together may use. Reads cgroup v2 (memory.max) and v1 (limit_in_bytes).

    Source: Linux kernel documentation, admin-guide/cgroup-v2 and admin-guide/cgroup-v1/memory.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = []
    for v2, folder in _groups("memory", cgroup, memberships):
        limit = _read(folder / ("memory.max" if v2 else "memory.limit_in_bytes")).strip()
        if limit.isdecimal():
            limits.append(int(limit))
    return min([machine, *limits])


def check_proc(own: Path = Path("/proc/self/stat")) -> None:
    """Raise WorldError where Linux shows no processes, as in a chroot: those of a run could not be watched."""
    if sys.platform == "linux" and not own.exists():
        raise WorldError("/proc is not mounted here, as in a bare chroot: type mount -t proc proc /proc, as root")


def check_processes_fit(nproc: int) -> None:
    """Raise WorldError where so many processes, each of which imports torch, are more than this machine can hold."""
    memory = memory_allowed_bytes()
    if nproc * FORKED_BYTES > memory:
        most = max(memory // FORKED_BYTES, 1)
        raise WorldError(
            f"{nproc:,} processes with torch take {FORKED_BYTES / 1e6:.0f} MB each at least, and the "
            f"{memory / 2**30:.1f} GiB of this machine hold {most:,} of them: use --nproc {most} or fewer"
        )


def memory_available_bytes(
    *, cgroup: Path = _CGROUP, memberships: Path = _MEMBERSHIPS, meminfo: Path = _MEMINFO
) -> int:
    """Return the memory that is free for new processes: of the machine, and below the limit of each control group.

    What caches hold of files counts as free, as the kernel gives it up where memory is needed.
    """
    known = dict(line.split(":", 1) for line in _read(meminfo).splitlines() if ":" in line)
    machine = int(known["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in known else memory_allowed_bytes()
    free = []
    for v2, folder in _groups("memory", cgroup, memberships):
        names = ("memory.max", "memory.current") if v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (_read(folder / name).strip() for name in names)
        if limit.isdecimal() and used.isdecimal():
            stat = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
            caches = _CACHES if v2 else [f"total_{name}" for name in _CACHES]
            free.append(max(int(limit) - int(used) + sum(int(stat.get(name, 0)) for name in caches), 0))
    return min([machine, *free])


def _groups(controller: str, cgroup: Path, memberships: Path) -> Iterator[tuple[bool, Path]]:
    """Yield the folders of this process's control groups that may limit a controller, and whether each is of v2."""
    lines = _read(memberships).splitlines()
    for controllers, path in (line.split(":", 2)[1:] for line in lines if line.count(":") >= 2):
        if controllers and controller not in controllers.split(","):
            continue
        # In a container the path may name a folder of the host: the root, its last ancestor, is then the one.
        root = cgroup / controllers if controllers else cgroup
        below = Path(path.lstrip("/"))
        for part in (below, *below.parents):
            yield not controllers, root / part


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def default_threads(local_world_size: int) -> int:
    """Return the CPU threads of each process: the cores this process may use, shared evenly."""
    return max(1, affinity() // local_world_size)
