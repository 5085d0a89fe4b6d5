"""What interruptions cost a run: restarts, steps that had to be taken again, and time in which no step was taken.

A process that is killed cannot tell, so rank 0 keeps `progress.json` in the folder of the run up to date after every
step; the next start reads how far the one before came. The counts go on from start to start until the run ends in
order, and then begin anew, unless the same launcher starts it again (a node has come or gone).
"""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from parallel.measure.record import LogRecord, StepRecord

FILE = "progress.json"
_BYTES = 512  # of the file, padded: it is written in place, by one call


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """Where a run is, over all its starts. Times are seconds since the epoch.

    launch: names the launcher of several nodes that starts the run again, None for others. first_step: where the
    first of these starts began. at: when `step` steps were done; ended: whether the last start ended in order.
    """

    launch: str | None
    began_at: float
    processes: int
    first_step: int
    step: int
    at: float
    restarts: int = 0
    steps_lost: int = 0
    recovery_s: float = 0.0
    ended: bool = False

    def again(self, *, launch: str | None, processes: int, step: int) -> "RunProgress":
        """Return the progress of the next start, which goes on from `step`."""
        return replace(
            self,
            launch=launch,
            processes=processes,
            step=step,
            first_step=min(self.first_step, step),
            restarts=self.restarts + 1,
            steps_lost=self.steps_lost + max(0, self.step - step),
            ended=False,
        )

    def columns(self) -> dict[str, Any]:
        """Return the columns of `RunRecord` that are known at any time."""
        return {
            "restarts": self.restarts,
            "wall_s": time.time() - self.began_at,
            "recovery_s": self.recovery_s,
            "steps_lost": self.steps_lost,
        }

    def goodput_share(self, log: Iterable[LogRecord]) -> float:
        """Return the share of the time since the first start that went into steps that were kept."""
        steps = {x.step: x.step_time_s or 0.0 for x in log if isinstance(x, StepRecord)}  # the last time counts
        kept_s = sum(taken_s for step, taken_s in steps.items() if self.first_step <= step < self.step)
        return kept_s / (time.time() - self.began_at)


def read_progress(folder: str | Path) -> RunProgress | None:
    """Return the progress of the run in a folder, None where there is none."""
    try:
        return RunProgress(**json.loads((Path(folder) / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # TypeError: of another version
        return None


class Pulse:
    """Keeps `progress.json` of one start up to date."""

    def __init__(self, folder: str | Path, *, launch: str | None, began_at: float, processes: int, step: int) -> None:
        before = read_progress(folder)
        if before and (not before.ended or (launch is not None and launch == before.launch)):
            self.now = before.again(launch=launch, processes=processes, step=step)
        else:
            self.now = RunProgress(
                launch=launch, began_at=began_at, processes=processes, first_step=step, step=step, at=began_at
            )
        self._recovering = self.now.restarts > 0
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._file = os.open(Path(folder) / FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._write()

    def step_done(self, step: int) -> None:
        """Take note that this many steps are done."""
        at = time.time()
        recovery_s = self.now.recovery_s + (at - self.now.at if self._recovering else 0.0)
        self._recovering = False
        self.now = replace(self.now, step=step, at=at, recovery_s=recovery_s)
        self._write()

    def end(self) -> None:
        """Take note that this start ends in order."""
        self.now = replace(self.now, ended=True)
        self._write()
        os.close(self._file)

    def _write(self) -> None:
        os.pwrite(self._file, json.dumps(asdict(self.now)).encode().ljust(_BYTES - 1) + b"\n", 0)
