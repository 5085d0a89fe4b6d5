"""A simulated cluster: several nodes that are Linux network namespaces on this machine (`paralab cluster`).

Each node has a network, an address, a host name and cores of its own, and a link of the requested bandwidth to the
bridge between them. All of it stands inside namespaces of the run: nothing on the machine has a name that could be
left behind, and when the first process in them ends, however that happens, the kernel ends the others and takes the
network down.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from select import select
from tempfile import NamedTemporaryFile
from types import FrameType
from typing import IO

from paralab.errors import ParalabError
from paralab.nodes.cpu_quota import cpu_quotas
from paralab.nodes.namespaces import permitted_unshare, with_system_folders
from paralab.nodes.simulated_node import Node, bits_per_s, run_tool
from paralab.options.commands import COMMANDS, PROGRAM

LINK = "PARALAB_LINK_MBIT_PER_S"  # tells the runs inside what their links were made for
MOST_NODES = 90  # torch ranks nodes by the text of their addresses: 10.77.0.10 to .99 sort as numbers do
PORT = 29500  # of the rendezvous: nothing else runs on these nodes
ACTIONS = ("cut", "heal", "kill", "start")
FOLLOW_S = 5.0  # after the first failure the other nodes may end by themselves for this long
POLL_S = 0.05
_CPU_GROUPS = "PARALAB_CPU_GROUPS"  # tells the processes inside what was made outside


@dataclass(frozen=True, order=True)
class Event:
    """Something that happens to a node: `cut` and `heal` its link, `kill` all its processes, `start` it."""

    at_s: float  # after the start; at 0 it happens before the start
    action: str
    node: int


@dataclass(frozen=True)
class Request:
    """What to build and what to run on it."""

    nodes: int
    node_option: tuple[str, ...]  # the options of `paralab node` that are the same on every node
    procs_per_node: int
    bandwidth: str | None  # as tc writes it, such as 1gbit; None is as fast as memory
    cores_per_node: float | None  # None: an equal share of whole cores, or all where there are fewer cores than nodes
    events: tuple[Event, ...]
    grace_s: float
    command: tuple[str, ...]


def run(request: Request, inside: Sequence[str]) -> int:
    """Run a command line in namespaces made for it, hand signals on to it, and return its exit status.

    inside: the command of the first process in them, which calls `be_first`.
    Raises: UsageError when tools or rights are missing.
    """
    environment = with_system_folders()
    unshare = permitted_unshare(environment)
    # A session of its own: a Ctrl-C reaches this process alone, which hands it on. The pipe is the leash: when this
    # process is gone, the other end notices.
    with cpu_quotas(request.nodes, request.cores_per_node) as groups:
        environment[_CPU_GROUPS] = os.pathsep.join(map(str, groups))
        command = [*unshare, *inside]
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True) as first:
            assert first.stdin is not None
            with _handing_on_signals(first.stdin):
                status = first.wait()
    return shell_status(status)


def be_first(request: Request) -> int:
    """Be the first process of the namespaces: build, run, and end all that is left."""
    cluster = None
    try:
        cluster = Cluster(request)
        return cluster.run()
    except ParalabError as error:
        print(f"paralab: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status
    finally:
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # every other process in these namespaces
        if cluster is not None:
            cluster.drain()


@contextmanager
def _handing_on_signals(pipe: IO[bytes]) -> Iterator[None]:
    def hand_on(number: int, frame: FrameType | None) -> None:
        with suppress(BrokenPipeError):
            os.write(pipe.fileno(), bytes([number]))

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, hand_on) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def shell_status(code: int) -> int:
    """Return an exit status as shells report it: 128 + N for a process that signal N ended."""
    return 128 - code if code < 0 else code


class Cluster:
    """The nodes, the bridge between them, and the command on each."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._events = sorted(request.events)
        self._status = 0
        run_tool("ip", "link", "set", "lo", "up")
        run_tool("ip", "link", "add", "bridge", "type", "bridge")
        run_tool("ip", "link", "set", "bridge", "up")
        groups = [Path(folder) for folder in os.environ.get(_CPU_GROUPS, "").split(os.pathsep) if folder]
        shares = share_cores(1 if groups else request.nodes) * (request.nodes if groups else 1)
        self._nodes = [
            Node(rank, cores=cores, cpu_group=groups[rank] if groups else None) for rank, cores in enumerate(shares)
        ]
        for node in self._nodes:
            node.plug_in("bridge", bandwidth=request.bandwidth)
        self._name_nodes()
        self._running: set[int] = set()

    def _name_nodes(self) -> None:
        """Let nodes find each other by name, and addresses their names; seen inside these namespaces only."""
        # torch looks up IPv4 addresses in their IPv6 form
        lines = [f"{form}{node.address} {node.name}\n" for node in self._nodes for form in ("", "::ffff:")]
        with NamedTemporaryFile("w") as hosts:
            hosts.writelines(["127.0.0.1 localhost\n", *lines])
            hosts.flush()
            run_tool("mount", "--bind", hosts.name, "/etc/hosts")

    def run(self) -> int:
        """Return the exit status: that of the node that failed first, 128 + N after signal N, otherwise 0."""
        absent = {event.node for event in self._events if (event.at_s, event.action) == (0, "kill")}
        for node in self._nodes:
            if node.rank not in absent:
                self._start(node)
        began_s = time.monotonic()
        while self._running or self._events:
            self._play(time.monotonic() - began_s)
            if number := self._signalled(POLL_S):
                self._say(f"{signal.Signals(number).name}: ending all nodes")
                self._end_all(number)
                return 128 + number
            self._collect()
            if self._status:
                self._end_all(signal.SIGTERM, after_s=FOLLOW_S)
                return self._status
        return 0

    def drain(self) -> None:
        for node in self._nodes:
            node.drain()

    def _start(self, node: Node) -> None:
        node.start(self._command(node), self._environment(node))
        self._running.add(node.rank)

    def _command(self, node: Node) -> Sequence[str]:
        command = self._request.command
        if not (command[0].endswith(".py") or command[0] == "paralab" or command[0] in COMMANDS):
            return command
        return (
            *(*PROGRAM, "node", "--node-rank", str(node.rank)),
            *("--rendezvous", f"{self._nodes[0].address}:{PORT}", *self._request.node_option, "--", *command),
        )

    def _environment(self, node: Node) -> dict[str, str]:
        count, procs, master = str(self._request.nodes), str(self._request.procs_per_node), self._nodes[0].address
        return {
            "NODE_RANK": str(node.rank),
            "NNODES": count,
            "NPROC_PER_NODE": procs,
            "MASTER_ADDR": master,
            "MASTER_PORT": str(PORT),
            "PARALAB_NODE_ADDRESS": node.address,
            **({LINK: f"{bits_per_s(self._request.bandwidth) / 1e6:g}"} if self._request.bandwidth else {}),
            **({"CUDA_VISIBLE_DEVICES": ""} if self._request.nodes > 1 else {}),  # two ranks cannot share a GPU
            "GLOO_SOCKET_IFNAME": "eth0",
            "NCCL_SOCKET_IFNAME": "=eth0",
            # the defaults of torchrun's options, so that a bare `torchrun script.py` spans the nodes
            "PET_NNODES": count,
            "PET_NPROC_PER_NODE": procs,
            "PET_RDZV_BACKEND": "c10d",
            "PET_RDZV_ENDPOINT": f"{master}:{PORT}",
            "PET_RDZV_ID": "paralab",
            "PET_RDZV_CONF": f"is_host={'true' if node.rank == 0 else 'false'}",
            "PET_LOCAL_ADDR": node.address,
        }

    def _play(self, now_s: float) -> None:
        while self._events and self._events[0].at_s <= now_s:
            event = self._events.pop(0)
            node = self._nodes[event.node]
            self._say(f"{event.at_s:g} s: {event.action} node {event.node}")
            if event.action in ("cut", "heal"):
                run_tool("ip", "link", "set", node.name, "down" if event.action == "cut" else "up")
            elif event.action == "kill":
                node.kill()
                self._running.discard(node.rank)
            elif node.rank not in self._running:
                self._start(node)

    def _collect(self) -> None:
        """Take note of the nodes whose command has ended."""
        for rank in sorted(self._running):
            process = self._nodes[rank].process
            assert process is not None
            if (code := process.poll()) is None:
                continue
            self._running.discard(rank)
            if code and not self._status:
                self._status = shell_status(code)
                self._say(f"node {rank} ended with status {self._status}")

    def _end_all(self, number: int, *, after_s: float = 0.0) -> None:
        """Send a signal to the command of each node after `after_s`, and wait for their end, but not for ever."""
        self._await_end(after_s)
        for rank in self._running:
            process = self._nodes[rank].process
            assert process is not None
            process.send_signal(number)
        self._await_end(self._request.grace_s)

    def _await_end(self, limit_s: float) -> None:
        deadline_s = time.monotonic() + limit_s
        while self._running and time.monotonic() < deadline_s:
            if self._signalled(POLL_S):  # a second one does not wait
                return
            self._collect()

    def _signalled(self, timeout_s: float) -> int:
        """Wait, and return the number of a signal that was handed on meanwhile, or 0."""
        if not select([0], [], [], timeout_s)[0]:
            return 0
        message = os.read(0, 1)
        if not message:
            raise SystemExit(1)  # who holds the leash is gone
        return message[0]

    def _say(self, text: str) -> None:
        print(f"paralab cluster: {text}", file=sys.stderr, flush=True)


def share_cores(nodes: int) -> list[set[int]]:
    """Return the cores of each node: an equal number each, or all of them where there are fewer cores than nodes."""
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // nodes
    return [set(cores[rank * each : (rank + 1) * each] or cores) for rank in range(nodes)]
