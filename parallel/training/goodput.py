"""The cost of interruptions to a run: restarts, repeated steps, and time in which no step was taken.

A process that is killed cannot tell, so rank 0 keeps `progress.json` in the folder of the run up to date after every
step; the next start reads how far the one before came. The counts go on from start to start until the run ends in
order, and then begin anew, unless the same launcher starts it again (a node has come or gone). Times are added up from
start to start, so that none is a difference of two times of day unless a machine was started again or left.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from paralab.console.clock import Moment
from paralab.records.log import LogRecord, StepRecord

FILE = "progress.json"
_BYTES = 1024  # of the file, padded: it is written in place, by one call


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """Where a run is, over all its starts. None is unknown.

    launch: names the launcher of several nodes that starts the run again, None for others. began_at: when the first of
    these starts was, in seconds since the epoch; tells runs apart. first_step: where it began. at: when `step` steps
    were done; wall_s: how long that was after the start. ended: whether the last start ended in order.
    """

    launch: str | None
    began_at: float
    processes: int
    first_step: int
    step: int
    at: Moment
    wall_s: float | None = 0.0
    restarts: int = 0
    steps_lost: int = 0
    recovery_s: float | None = 0.0
    ended: bool = False

    def goes_on(self, *, launch: str | None, resumes: bool) -> bool:
        """Return whether a start goes on with this run: told to and there is more of it, or by the same launcher."""
        return (resumes and not self.ended) or (launch is not None and launch == self.launch)

    def has_start(self, *, launch: str | None, resumes: bool, began: Moment) -> bool:
        """Return whether a start that began then is one of this run: its first one, or one that goes on with it."""
        return self.began_at == began.epoch_s or self.goes_on(launch=launch, resumes=resumes)

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
            "wall_s": _sum(self.wall_s, self.at.elapsed_s),
            "recovery_s": self.recovery_s,
            "steps_lost": self.steps_lost,
        }

    def goodput_share(self, log: Iterable[LogRecord]) -> float | None:
        """Return the share of the time since the first start that went into steps that were kept.

        None where that time is unknown, or is less than was spent in steps: then the clocks of two machines disagree.
        """
        steps = {x.step: x.step_time_s or 0.0 for x in log if isinstance(x, StepRecord)}  # the last time counts
        kept_s = sum(taken_s for step, taken_s in steps.items() if self.first_step <= step < self.step)
        wall_s = _sum(self.wall_s, self.at.elapsed_s)
        return kept_s / wall_s if wall_s and kept_s <= wall_s else None


def _sum(a: float | None, b: float | None) -> float | None:
    return a + b if a is not None and b is not None else None


def read_progress(folder: str | Path) -> RunProgress | None:
    """Return the progress of the run in a folder, None where there is none that can be read."""
    try:
        values = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
        found = RunProgress(**values | {"at": Moment(**values["at"])})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # the last three: of another version
        return None
    return found if _is_of_form(vars(found)) and _is_of_form(vars(found.at)) else None


_FORM: Mapping[str, tuple[type, ...]] = {
    "launch": (str, type(None)),
    "began_at": (float,),
    **dict.fromkeys(("processes", "first_step", "step", "restarts", "steps_lost"), (int,)),
    "at": (Moment,),
    **dict.fromkeys(("wall_s", "recovery_s"), (float, type(None))),
    "ended": (bool,),
    "boot": (str,),
    **dict.fromkeys(("monotonic_s", "epoch_s"), (float,)),
}


def _is_of_form(values: Mapping[str, Any]) -> bool:
    return all(type(value) in _FORM[name] for name, value in values.items())


class Pulse:
    """Keeps `progress.json` of one start up to date. began: when it was typed. goes_on: whether it continues a run."""

    def __init__(
        self, folder: str | Path, *, launch: str | None, began: Moment, processes: int, step: int, goes_on: bool
    ) -> None:
        before = read_progress(folder)
        if before and before.goes_on(launch=launch, resumes=goes_on):
            self.now = before.again(launch=launch, processes=processes, step=step)
        else:
            self.now = RunProgress(
                launch=launch, began_at=began.epoch_s, processes=processes, first_step=step, step=step, at=began
            )
        self._recovering = self.now.restarts > 0
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._file = os.open(Path(folder) / FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._write()

    def step_done(self, step: int) -> None:
        """Take note that this many steps are done."""
        before, at = self.now, Moment.now()
        taken_s = at.since(before.at)
        recovery_s = _sum(before.recovery_s, taken_s) if self._recovering else before.recovery_s
        self._recovering = False
        self.now = replace(before, step=step, at=at, wall_s=_sum(before.wall_s, taken_s), recovery_s=recovery_s)
        self._write()

    def end(self) -> None:
        """Take note that this start ends in order."""
        self.now = replace(self.now, ended=True)
        self._write()
        os.close(self._file)

    def _write(self) -> None:
        os.pwrite(self._file, json.dumps(asdict(self.now)).encode().ljust(_BYTES - 1) + b"\n", 0)
