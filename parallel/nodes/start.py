"""Start this machine's processes of a run on several nodes (`paralab node`).

torch's elastic launcher starts the processes, over a c10d rendezvous that node 0 hosts. Added here is what it lacks:
missing nodes are named, nothing listens on another address than the one given, a node that falls silent is noticed,
and the first failure ends every node and is what every node reports.
"""

import ctypes
import logging
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from paralab.errors import VICTIM_EXIT_STATUS, UsageError, WorldError, did_you_mean
from paralab.options.commands import COMMANDS, PROGRAM
from paralab.processes.oom_killer import OomKiller
from paralab.processes.pass_over import pass_over

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig

    from paralab.nodes.membership import Membership


@dataclass(frozen=True)
class NodeRequest:
    """What one node is asked to start."""

    min_nodes: int
    max_nodes: int
    node_rank: int
    host: str  # of the rendezvous, on node 0
    port: int
    procs_per_node: int
    max_restarts: int
    join_timeout_s: float
    node_timeout_s: float
    command: tuple[str, ...]

    @property
    def elastic(self) -> bool:
        """Whether nodes may come and go."""
        return self.min_nodes < self.max_nodes


class Stopped(BaseException):
    """A signal asked this node to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def take_part(request: NodeRequest) -> int:
    """Take part in a run as one node; return the exit status when the run has ended on all of them."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a node that went away is one line, not pages of C++
    entry = worker_command(request.command)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)  # until torch's launcher, which raises as well, takes over
    try:
        return _take_part(request, entry)
    except Stopped as stopped:
        return 128 + stopped.number


def _take_part(request: NodeRequest, entry: Sequence[str]) -> int:
    from paralab.nodes.membership import Membership

    with Membership.meet(request) as membership:
        try:
            membership.wait_for_all()
        except WorldError as error:
            membership.report(str(error))
            raise
        membership.keep_watch()
        return _launch(request, membership, entry)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


def _launch(request: NodeRequest, membership: "Membership", entry: Sequence[str]) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    oom_killer = OomKiller()
    try:
        elastic_launch(_launch_config(request, membership), entry[0])(*entry[1:])
        return 0
    except ChildFailedError as error:
        pass_over([signal.SIGTERM])  # the alarm of the watch has nothing left to end
        for rank, failure in error.failures.items():
            _report(membership, f"rank {rank} on node {request.node_rank}", failure, oom_killer)
        raise membership.first_failure() from None
    except (SignalException, Stopped, KeyboardInterrupt) as stopped:
        pass_over([signal.SIGTERM])
        if membership.alarmed:
            raise membership.first_failure() from None
        number = int(getattr(stopped, "sigval", getattr(stopped, "number", signal.SIGINT)))
        if not request.elastic:  # otherwise the others go on without this node
            membership.report(f"node {request.node_rank} was ended by {signal.Signals(number).name}")
        return 128 + number
    except Exception as error:
        membership.report(f"node {request.node_rank}: {type(error).__name__}: {error}")
        raise


def _report(membership: "Membership", who: str, failure: "ProcessFailure", oom_killer: OomKiller) -> None:
    """Tell the other nodes how one process of this node ended."""
    no_file = "<N/A>"  # torch's word for a process that wrote no error file
    code = failure.exitcode
    if code == -signal.SIGTERM:  # by the launcher, as a rule, because of another one
        membership.report(f"{who} was ended by SIGTERM", at_s=failure.timestamp, victim=True)
    elif code < 0:
        memory = f" {oom_killer.BLAME}" if code == -signal.SIGKILL and oom_killer.has_struck else ""
        membership.report(f"{who} was ended by {signal.Signals(-code).name}{memory}", at_s=failure.timestamp)
    elif failure.error_file != no_file:
        message = failure.error_file_data["message"]
        text = message["message"] if isinstance(message, dict) else message
        line = f"{text} (reported by {who})" if "failed first" in text else f"{who} failed: {text}"
        membership.report(line, at_s=failure.timestamp, exit_status=code)
    else:
        text = f"{who} ended with status {code}: its message is above"
        membership.report(text, at_s=failure.timestamp, exit_status=code, victim=code == VICTIM_EXIT_STATUS)


def _launch_config(request: NodeRequest, membership: "Membership") -> "LaunchConfig":
    from torch.distributed.launcher.api import LaunchConfig

    from paralab.nodes.rendezvous import register_rendezvous
    from paralab.processes.interfaces import interface_of
    from paralab.processes.rank import ALARM, ELASTIC, LAUNCH

    if not request.max_restarts:  # one line says what failed; of restarts, torch tells
        logging.disable(logging.ERROR)
    os.environ[LAUNCH], os.environ[ELASTIC] = membership.launch, "1" if request.elastic else "0"
    os.environ[ALARM] = str(membership.alarm_file)
    interface = interface_of(membership.address)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
    if request.procs_per_node > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    return LaunchConfig(
        min_nodes=request.min_nodes,
        max_nodes=request.max_nodes,
        nproc_per_node=request.procs_per_node,
        max_restarts=request.max_restarts,
        rdzv_backend=register_rendezvous(),
        rdzv_endpoint=f"{request.host}:{request.port}",
        # once the fewest nodes are there, wait this long for more of them
        rdzv_configs={"join_timeout": int(request.join_timeout_s) + 1, "last_call_timeout": 3},
        run_id="paralab",
        local_addr=membership.address,
        monitor_interval=0.1,
    )


def worker_command(words: Sequence[str]) -> list[str]:
    """Return the command line of one process, for a Python file or a paralab command.

    Raises: UsageError when it is neither.
    """
    first, *rest = words[1:] if words[0] == "paralab" and len(words) > 1 else words
    if first.endswith(".py") or first in COMMANDS:
        return [sys.executable, "-u", "-m", "paralab.nodes.start", first, *rest]
    raise UsageError(
        f"{first!r} is neither a Python file nor a paralab command{did_you_mean(first, COMMANDS)}:"
        " write, for example, -- run --model gpt2 or -- my_script.py"
    )


def run_worker(words: Sequence[str]) -> int:
    """Be one process of the run: end with the launcher that started it, and leave word of an error."""
    from torch.distributed.elastic.multiprocessing.errors import record

    end_with_parent()
    first, *rest = words
    if first in COMMANDS:
        os.execv(PROGRAM[0], [*PROGRAM, *words])
    sys.argv = [first, *rest]
    sys.path[0] = os.path.dirname(os.path.abspath(first))  # as Python itself does
    record(runpy.run_path)(first, run_name="__main__")
    return 0


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends, however that happens (Linux)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # sys/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(run_worker(sys.argv[1:]))
