"""CPU cores of a simulated node: a control group of Linux with a CPU quota, which may be a fraction of a core."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paralab.errors import UsageError

PERIOD_US = 10_000  # short, so that nodes that have used up their quota do not wait long for one another
_V1, _V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")


def add(folder: Path, pid: int) -> None:
    """Move a process into a group; what it starts from now on follows."""
    (folder / "cgroup.procs").write_text(str(pid))


@contextmanager
def cpu_quotas(nodes: int, cores: float | None) -> Iterator[list[Path]]:
    """Make a group for each node, of `cores` each (none at all without); yield their folders, remove them at the end.

    Raises: UsageError without the right to make them.
    """
    made: list[Path] = []
    try:
        for node in range(nodes if cores is not None else 0):
            made.append(_root() / f"paralab-{os.getpid()}-node{node}")
            _make(made[-1], cores or 0.0)
        yield made
    finally:
        for folder in made:
            _remove(folder)


def _root() -> Path:
    return _V1 if (_V1 / "cpu.cfs_quota_us").exists() or (_V1 / "tasks").exists() else _V2


def _make(folder: Path, cores: float) -> None:
    quota = str(round(cores * PERIOD_US))
    v1 = {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": quota}
    try:
        folder.mkdir()
        for file, value in (v1 if folder.parent == _V1 else {"cpu.max": f"{quota} {PERIOD_US}"}).items():
            (folder / file).write_text(value)
    except OSError as error:
        raise UsageError(
            f"--cores-per-node needs the right to make control groups ({folder}: {error.strerror}): run as root where "
            "the cpu controller is on, or leave it out"
        ) from error


def _remove(folder: Path) -> None:
    """Delete a group, whose processes have ended or are about to."""
    for _ in range(100):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:  # still has processes
            time.sleep(0.02)
