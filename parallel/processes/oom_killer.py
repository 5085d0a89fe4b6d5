"""Whether the kernel has killed a process because memory was short."""

from pathlib import Path


class OomKiller:
    """Whether the kernel has ended a process of this machine for want of memory since this was made.

    The limit of a container counts as well. Unknown, away from Linux, is no. Source: `oom_kill` of /proc/vmstat.
    """

    BLAME = "while the kernel killed a process because memory was short"

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._file = root / "vmstat"
        self._before = self._count()

    @property
    def has_struck(self) -> bool:
        return self._count() > self._before

    def _count(self) -> int:
        try:
            words = self._file.read_text().split()
            return int(words[words.index("oom_kill") + 1])
        except (OSError, ValueError):
            return 0
