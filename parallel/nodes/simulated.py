"""A simulated cluster: several nodes that are Linux network namespaces on this machine (`paralab cluster`).

Each node has a network, an address, a host name and cores of its own, and a link of the requested bandwidth to the
bridge between them. All of it stands inside namespaces of the run: nothing on the machine has a name that could be
left behind, and when the first process in them ends, however that happens, the kernel ends the others and takes the
network down.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from select import select
from tempfile import NamedTemporaryFile
from types import FrameType
from typing import IO

from paralab.errors import ParalabError, UsageError
from paralab.nodes import cpu_quota
from paralab.nodes.cpu_quota import cpu_quotas
from paralab.options.commands import COMMANDS, PROGRAM

LINK = "PARALAB_LINK_MBIT_PER_S"  # tells the runs inside what their links were made for
MOST_NODES = 90  # torch ranks nodes by the text of their addresses: 10.77.0.10 to .99 sort as numbers do
PORT = 29500  # of the rendezvous: nothing else runs on these nodes
ACTIONS = ("cut", "heal", "kill", "start")
FOLLOW_S = 5.0  # after the first failure the other nodes may end by themselves for this long
POLL_S = 0.05
TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}

_NAMESPACES = ("--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_CPU_GROUPS = "PARALAB_CPU_GROUPS"  # tells the processes inside what was made outside
_SYSTEM_FOLDERS = "/usr/sbin:/sbin"  # where ip and tc are, and not on the PATH of every user
# one of each thing that `Cluster` makes, in namespaces that end with the attempt
_ATTEMPT = (
    "ip link add attempt0 type bridge && ip link add attempt1 type veth peer name attempt2"
    " && tc qdisc add dev attempt1 root tbf rate 1mbit burst 16kb latency 50ms"
)


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
    environment = os.environ | {"PATH": f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_FOLDERS}"}
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


def permitted_unshare(environment: dict[str, str]) -> list[str]:
    """Return the command that opens the namespaces, as root or as the user that this process is.

    Raises: UsageError that says which tool or which right is missing, and how to get it.
    """
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool, path=environment["PATH"])})
    if sys.platform != "linux":
        raise UsageError(f"paralab cluster needs Linux, this is {sys.platform}: run it in a Linux virtual machine")
    if missing:
        raise UsageError(f"tools are missing: apt-get install {' '.join(missing)} (Fedora: also iproute-tc)")
    for user in ((), ("--user", "--map-root-user")):
        unshare = ["unshare", *user, *_NAMESPACES]
        attempt = subprocess.run([*unshare, "sh", "-c", _ATTEMPT], env=environment, capture_output=True, text=True)
        if attempt.returncode == 0:
            return unshare
    reason = " ".join(attempt.stderr.split())
    raise UsageError(
        f"this process may not make network namespaces ({reason}): run as root, or allow users to:"
        " sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu) or kernel.unprivileged_userns_clone=1"
        " (Debian); in a container: docker run --privileged"
    )


class Node:
    """One host. A process that sleeps holds its network and its host name, whether or not the command runs.

    Raises: ParalabError when the system does not allow to make one.
    """

    def __init__(self, rank: int, *, cores: set[int], cpu_group: Path | None) -> None:
        self.rank = rank
        self.name = f"node{rank}"
        self.address = f"10.77.0.{10 + rank}"
        self.process: subprocess.Popen[bytes] | None = None
        self._cores, self._cpu_group = cores, cpu_group
        self._pumps: list[threading.Thread] = []
        hold = 'echo "$0" >/proc/sys/kernel/hostname && echo held && exec sleep infinity'
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "sh", "-c", hold, self.name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        if not self._holder.stdout.readline():
            raise ParalabError(f"node {rank} could not be made: see the message above")

    def plug_in(self, bridge: str, *, bandwidth: str | None) -> None:
        """Connect the node to the bridge by a cable, shaped in both directions."""
        _run("ip", "link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", str(self._holder.pid))
        _run("ip", "link", "set", self.name, "master", bridge, "up")
        self._inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self._inside("ip", "link", "set", "lo", "up")
        self._inside("ip", "link", "set", "eth0", "up")
        if bandwidth is not None:
            shape = ("root", "tbf", "rate", bandwidth, "burst", str(burst_bytes(bandwidth)), "latency", "50ms")
            _run("tc", "qdisc", "add", "dev", self.name, *shape)  # what the node receives
            self._inside("tc", "qdisc", "add", "dev", "eth0", *shape)  # what it sends

    def _inside(self, *words: str) -> None:
        _run(*self._enter, *words)

    @property
    def _enter(self) -> tuple[str, ...]:
        return ("nsenter", "--target", str(self._holder.pid), "--net", "--uts", "--")

    def start(self, command: Sequence[str], environment: dict[str, str]) -> None:
        everything = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cores)  # children inherit it
        self.process = subprocess.Popen(
            [*self._enter, *command],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        os.sched_setaffinity(0, everything)
        if self._cpu_group is not None:
            cpu_quota.add(self._cpu_group, self.process.pid)
        assert self.process.stdout is not None and self.process.stderr is not None
        for pipe, sink in ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr)):
            pump = threading.Thread(target=self._pump, args=(pipe, sink.buffer), daemon=True)
            pump.start()
            self._pumps.append(pump)

    def _pump(self, pipe: IO[bytes], sink: IO[bytes]) -> None:
        """Copy lines, each with the number of the node before it."""
        for line in pipe:
            with suppress(BrokenPipeError):  # keep reading when nobody listens: the node would stop otherwise
                sink.write(b"[node %d] %s\n" % (self.rank, line.rstrip(b"\n")))
                sink.flush()

    def drain(self) -> None:
        """Return when all that the node has written is copied; its processes have to be gone."""
        for pump in self._pumps:
            pump.join()

    def kill(self) -> None:
        """End every process of the node at once, as a power cut does."""
        while pids := self._pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S / 5)

    def _pids(self) -> list[int]:
        mine = os.stat(f"/proc/{self._holder.pid}/ns/net").st_ino
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):  # gone, or a zombie
                if os.stat(f"/proc/{entry}/ns/net").st_ino == mine:
                    found.append(int(entry))
        return [pid for pid in found if pid != self._holder.pid]


class Cluster:
    """The nodes, the bridge between them, and the command on each."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._events = sorted(request.events)
        self._status = 0
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", "bridge", "type", "bridge")
        _run("ip", "link", "set", "bridge", "up")
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
            _run("mount", "--bind", hosts.name, "/etc/hosts")

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
                _run("ip", "link", "set", node.name, "down" if event.action == "cut" else "up")
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


def bits_per_s(bandwidth: str) -> float:
    """Return the speed of a link that is written as tc does: 100mbit, 2.5gbit. Raises: UsageError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmg])bit", bandwidth)
    if not match or not float(match[1]):
        raise UsageError(f"{bandwidth!r} is not a bandwidth: write 100mbit, 1gbit or 2.5gbit")
    return float(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[match[2]]


def burst_bytes(bandwidth: str) -> int:
    """Return how much may pass at once: 2 ms of traffic, and at least one packet as the kernel sends it (64 KiB)."""
    return max(65536, int(bits_per_s(bandwidth) / 8 * 0.002))


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ParalabError(f"{shlex.join(words)}: {' '.join(done.stderr.split())}")
