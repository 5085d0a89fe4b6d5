"""How many cores this process may use: the smaller of its affinity mask and its cgroup's quota."""

import os
from collections.abc import Iterator
from pathlib import Path


def cores_allowed(*, cgroup: Path = Path("/sys/fs/cgroup"), memberships: Path = Path("/proc/self/cgroup")) -> float:
    """Return the cores allowed; a quota may be a fraction. Reads cgroup v2 (cpu.max) and v1 (cpu.cfs_quota_us).

    Source: Linux kernel documentation, admin-guide/cgroup-v2 and scheduler/sched-bwc.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([float(affinity), *_quotas(cgroup, memberships)])


def _quotas(cgroup: Path, memberships: Path) -> Iterator[float]:
    lines = _read(memberships).splitlines()
    for controllers, path in (line.split(":", 2)[1:] for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the path may name a folder of the host: the root, its last ancestor, is then the one.
        root = cgroup / controllers if controllers else cgroup
        below = Path(path.lstrip("/"))
        for folder in (root / part for part in (below, *below.parents)):
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            limit = " ".join(_read(folder / name) for name in files).split()
            if len(limit) == 2 and all(number.isdecimal() for number in limit):  # "max" and -1 are no limit
                yield int(limit[0]) / int(limit[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
