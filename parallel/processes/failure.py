"""Which rank failed first, at which step, and why: one line, from that rank and not from its victims.

When a rank raises, its peers find their connections closed and raise as well. The first to reach the shared store
claims the failure before its sockets close, so those that follow know that they are victims and stay silent. A rank
that was killed or stopped claims nothing; then its peers look for it, and one of them speaks for it.
"""

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from paralab.console.outputs import write_whole
from paralab.errors import (
    VICTIM_EXIT_STATUS,
    DisagreementError,
    DivergedError,
    FitError,
    FolderInUseError,
    ParalabError,
    RankError,
    Status,
    StoppedError,
    UsageError,
    WorldError,
    is_out_of_memory,
)
from paralab.models.files import line_in
from paralab.processes import cluster
from paralab.processes.liveness import Liveness
from paralab.processes.oom_killer import OomKiller
from paralab.processes.pass_over import pass_over
from paralab.processes.rank import ALARM, Rank

_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
_NO_ANSWER = ("Timed out waiting", "Socket Timeout", "timed out after", "Wait timeout")
# two of these are in what torch says of ranks that call different collectives
_CALLS = re.compile(
    r"Rank (\d+) is running collective: CollectiveFingerPrint\(SequenceNumber=(\d+), OpType=(\w+)"
    r"(?:, TensorShape=\[([^]]*)\])?"
)
_GLOO_NOISE = re.compile(r"\[/[^]]*\] ?|\. This is typically caused by a remote worker crashing\..*")
# nothing was done and nothing has failed: there is no row of it
_REFUSALS = (DisagreementError, FitError, FolderInUseError)
_GRACE_S = 3.0  # for a failed rank to claim, when a victim was faster
_STOPPING_GRACE_S = 0.5  # the launcher stops all when one has failed
_ALARMED_S = 3.5  # from the alarm of `paralab node` to the end of a rank that waits for ever; it is killed after 5
_CLAIM_S = 0.5

STOPS = signal.SIGTERM, signal.SIGINT  # what a rank leaves a row on

_WHAT_HAPPENED: dict[str, tuple[Status, str]] = {
    "ended": ("crash", "its process ended without a message, as when it is killed"),
    "out of memory": ("oom", "its process is gone, and the kernel has ended one for want of memory"),
    "stopped": ("hang", "its process is stopped (SIGSTOP), and was ended"),
    "left": (
        "crash",
        "it had finished while others still waited for it: do all ranks have the same number of batches?",
    ),
}


@dataclass
class Progress:
    """Where a rank is; the loop keeps it up to date."""

    step: int | None = None
    oom_killer: OomKiller = field(default_factory=OomKiller)


@dataclass(frozen=True)
class Failure:
    """The first failure of a run. rank: None where it is known only that some other rank is gone."""

    rank: int | None
    step: int | None
    status: Status
    reason: str
    exit_status: int = 1

    def __str__(self) -> str:
        if self.rank is None and self.step is None:
            return self.reason
        at = f" at step {self.step}" if self.step is not None else ""
        return f"{'a rank' if self.rank is None else f'rank {self.rank}'} failed first{at}: {self.reason}"


def first_failure(rank: int, progress: Progress, error: BaseException) -> Failure | None:
    """Return the first failure of the run if it falls to this rank to tell it, None when another one tells it."""
    own = _own_failure(rank, progress, error)
    liveness = cluster.liveness()
    if liveness is None:  # whoever ends a run before its ranks have met tells all of them: rank 0 says so
        return None if rank and isinstance(error, StoppedError) else own
    perhaps_another = None
    if isinstance(error, StoppedError) or _says(error, _LOST_PEER + _NO_ANSWER):
        perhaps_another = _search(liveness, progress, error)
    if not liveness.claim():
        return None
    if perhaps_another is not None and perhaps_another.status == "hang" and perhaps_another.rank is not None:
        liveness.end(perhaps_another.rank)
    return perhaps_another or own


def _own_failure(rank: int, progress: Progress, error: BaseException) -> Failure:
    if calls := _CALLS.findall(str(error)):
        said = " where ".join(f"rank {rank} calls {name} of shape ({shape})" for rank, _, name, shape in calls)
        return Failure(None, progress.step, "crash", f"collective {calls[0][1]} differs: {said}")
    if isinstance(error, (WorldError, *_REFUSALS)):  # about all of them, such as who has not come
        return Failure(None, progress.step, "crash", _text(error), error.exit_status)
    reason = f"{line_in(error)}{type(error).__name__}: {_text(error) or 'no message'}"
    if isinstance(error, StoppedError):
        reason = str(error)
    if isinstance(error, StopIteration):
        reason = "it had fewer batches than the other ranks"
    status = error.exit_status if isinstance(error, ParalabError) else 1
    return Failure(rank, progress.step, _status(error), reason, status)


def _search(liveness: Liveness, progress: Progress, error: BaseException) -> Failure | None:
    """Return the failure of another rank that led to this one's error; None where this one's is the first."""
    liveness.mark("waited")
    deadline_s = time.monotonic() + (_STOPPING_GRACE_S if isinstance(error, StoppedError) else _GRACE_S)
    while time.monotonic() < deadline_s and not liveness.claimed():
        if lost := liveness.lost():
            rank, what = lost
            if what == "ended" and progress.oom_killer.has_struck:
                what = "out of memory"
            return Failure(rank, progress.step, *_WHAT_HAPPENED[what])
        time.sleep(0.05)
    if isinstance(error, StoppedError):
        return None
    advice = "use --debug-collectives DIR to see which operation"
    if _says(error, _LOST_PEER):
        elsewhere = "a rank on another machine ended without a message"
        here = f"connections broke although no rank has ended: do all call the same collectives? {advice}"
        return Failure(None, progress.step, "crash", f"{here if liveness.is_local else elsewhere} ({_text(error)})")
    if silent := liveness.silent():
        return Failure(silent[0], progress.step, "hang", f"it did not answer the others in time ({_text(error)})")
    return Failure(None, progress.step, "hang", f"all ranks waited for each other ({_text(error)}): {advice}")


def _say_nothing(failure: Failure) -> None:
    pass


_tell: Callable[[Failure], None] = _say_nothing  # what the innermost guard does with a failure
_failing = False  # whether a guard is about to do so
_guarded = False  # whether an error would reach a guard that does
_unraised: int | None = None  # a signal that came where it would not
_launcher_tells = False  # whether the process that started this one says that all were interrupted


@contextlib.contextmanager
def guard(rank: Rank, progress: Progress, on_first: Callable[[Failure], None] = _say_nothing) -> Iterator[None]:
    """Turn an exception into one line and an exit status; on_first is called on the rank that tells the failure.

    With other ranks around the process ends at once, since leaving in good order would wait for them. Alone, a
    user's error passes through and any other becomes a RankError.
    Raises: RankError, or the user's error, where there are no other ranks.
    """
    global _tell, _failing, _guarded, _unraised
    outer, _tell = (_tell, _guarded), on_first
    try:
        _guarded = True
        number, _unraised = _unraised, None
        if number is not None:
            raise StoppedError(number)
        yield
        _guarded = outer[1]
    except BaseException as error:
        _failing, _guarded = True, False
        _ignore_signals()  # launchers send SIGTERM to the victims, who have work left
        failure = first_failure(rank.rank, progress, error)
        if failure is not None and not isinstance(error, _REFUSALS):
            with contextlib.suppress(OSError):  # a full disk must not hide what failed
                on_first(failure)
        if rank.world_size == 1:
            if isinstance(error, (ParalabError, KeyboardInterrupt)):
                raise
            raise RankError(str(failure)) from error
        _leave_word(failure, rank, error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(failure.exit_status if failure else VICTIM_EXIT_STATUS)
    finally:
        (_tell, _guarded), _failing = outer, False


def _leave_word(failure: Failure | None, rank: Rank, error: BaseException) -> None:
    """Print the failure, and write it where torch's launcher looks; write the flight recording that was requested."""
    if failure is not None:
        if not isinstance(error, StoppedError) or not error.is_interruption:
            print(f"paralab: error: {failure}", file=sys.stderr)
        elif not _launcher_tells:
            print(f"paralab: {failure.reason}", file=sys.stderr)
        if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            extra = {"py_callstack": str(failure), "timestamp": str(int(time.time()))}
            message = {"message": str(failure), "errorCode": failure.exit_status, "extraInfo": extra}
            with contextlib.suppress(UsageError):  # a full disk: the line above has said it
                write_whole(Path(file), json.dumps({"message": message}).encode())  # its reader may come at any time
    liveness = cluster.liveness()
    if liveness is not None and liveness.recordings is not None:
        from torch._C._distributed_c10d import _dump_fr_trace_json  # type: ignore[attr-defined]

        liveness.recordings.mkdir(parents=True, exist_ok=True)
        (liveness.recordings / f"flight-rank{rank.rank}.json").write_bytes(_dump_fr_trace_json())


def _ignore_signals() -> None:
    """Let this process end in its own way, however often it is told to."""
    with contextlib.suppress(ValueError):  # not in the main thread
        pass_over(STOPS)


@contextlib.contextmanager
def stopping(*, launcher_tells: bool = False) -> Iterator[None]:
    """Raise StoppedError inside of a guard on SIGTERM and on SIGINT, which were blocked while this process started.

    What comes before the guard is raised as it begins; what comes after it is left to the handlers that were there.
    launcher_tells: whether the process that started this one says that all were interrupted.
    """
    global _launcher_tells, _unraised

    def stop(number: int, frame: FrameType | None) -> None:
        global _unraised
        _ignore_signals()  # a launcher may pass on what the terminal has sent already
        if _guarded:
            raise StoppedError(number)
        _unraised = number

    try:
        before = {number: signal.signal(number, stop) for number in STOPS}
    except ValueError:  # only the main thread hears signals
        yield
        return
    _launcher_tells = launcher_tells
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        yield
    finally:
        late, _unraised = _unraised, None
        for number, handler in before.items():
            signal.signal(number, handler)
        if late is not None:
            os.kill(os.getpid(), late)


def heed_alarm(rank: Rank, progress: Progress) -> None:
    """Have one rank leave a row when `paralab node` ends all of a node that wait for another one, which is gone.

    The wait is torch's, in which Python hears no signal. The line is that of `paralab node`.
    """
    file = os.environ.get(ALARM)
    if file is None:
        return

    def watch() -> None:
        while not os.path.exists(file):
            time.sleep(0.2)
        time.sleep(_ALARMED_S)
        if _failing:
            return
        with contextlib.suppress(OSError):
            alarm = json.loads(Path(file).read_text())
            last_word = alarm["decides"] and rank.local_rank == 0  # where the store is on a node that is gone
            liveness = cluster.liveness()
            if last_word if liveness is None else liveness.claim_within(_CLAIM_S, otherwise=last_word):
                _tell(Failure(None, progress.step, "crash", alarm["reason"]))
        os._exit(VICTIM_EXIT_STATUS)

    threading.Thread(target=watch, daemon=True).start()


def _status(error: BaseException) -> Status:
    if isinstance(error, DivergedError):
        return "diverged"
    if is_out_of_memory(error):
        return "oom"
    return "aborted" if isinstance(error, (KeyboardInterrupt, StoppedError)) else "crash"


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    return any(text in str(error) for text in texts)


def _text(error: BaseException) -> str:
    return " ".join(_GLOO_NOISE.sub("", str(error)).split())
