"""Elapsed time across processes, restarts and machines, even if the system clock is changed.

The monotonic clock of Linux counts from the start of a machine and is the same for all of its processes, so a duration
is a difference of it wherever both ends lie on one machine. Between machines only the time of day is left.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # random(4): a new one each time the machine starts


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A moment on the clock of one machine. boot: names the machine and its start. epoch_s: the time of day."""

    boot: str
    monotonic_s: float
    epoch_s: float

    @classmethod
    def now(cls) -> "Moment":
        return cls(boot=_boot(), monotonic_s=time.monotonic(), epoch_s=time.time())

    def since(self, earlier: "Moment") -> float | None:
        """Return the seconds from an earlier moment to this one.

        Those of another machine, or from before it was started again, are compared by the time of day: None where that
        has gone backwards, and the duration is unknown.
        """
        if self.boot == earlier.boot:
            return self.monotonic_s - earlier.monotonic_s
        difference_s = self.epoch_s - earlier.epoch_s
        return difference_s if difference_s >= 0 else None

    @property
    def elapsed_s(self) -> float | None:
        """Seconds from this moment until now."""
        return Moment.now().since(self)

    @property
    def iso(self) -> str:
        """Date and time of day in UTC, ISO 8601, to the millisecond."""
        return datetime.fromtimestamp(self.epoch_s, tz=UTC).isoformat(timespec="milliseconds")


@cache
def _boot() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""  # one machine is assumed where none can be told from another
