"""One node of a simulated cluster: its network, its address, its cable to the others, and its processes."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from paralab.errors import ParalabError, UsageError
from paralab.nodes import cpu_quota

_POLL_S = 0.01


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
        run_tool("ip", "link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", str(self._holder.pid))
        run_tool("ip", "link", "set", self.name, "master", bridge, "up")
        self._inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self._inside("ip", "link", "set", "lo", "up")
        self._inside("ip", "link", "set", "eth0", "up")
        if bandwidth is not None:
            shape = ("root", "tbf", "rate", bandwidth, "burst", str(burst_bytes(bandwidth)), "latency", "50ms")
            run_tool("tc", "qdisc", "add", "dev", self.name, *shape)  # what the node receives
            self._inside("tc", "qdisc", "add", "dev", "eth0", *shape)  # what it sends

    def _inside(self, *words: str) -> None:
        run_tool(*self._enter, *words)

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
            time.sleep(_POLL_S)

    def _pids(self) -> list[int]:
        mine = os.stat(f"/proc/{self._holder.pid}/ns/net").st_ino
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):  # gone, or a zombie
                if os.stat(f"/proc/{entry}/ns/net").st_ino == mine:
                    found.append(int(entry))
        return [pid for pid in found if pid != self._holder.pid]


def bits_per_s(bandwidth: str) -> float:
    """Return the speed of a link that is written as tc does: 100mbit, 2.5gbit. Raises: UsageError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmg])bit", bandwidth)
    if not match or not float(match[1]):
        raise UsageError(f"{bandwidth!r} is not a bandwidth: write 100mbit, 1gbit or 2.5gbit")
    return float(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[match[2]]


def burst_bytes(bandwidth: str) -> int:
    """Return how much may pass at once: 2 ms of traffic, and at least one packet as the kernel sends it (64 KiB)."""
    return max(65536, int(bits_per_s(bandwidth) / 8 * 0.002))


def run_tool(*words: str) -> None:
    """Run a command of the system. Raises: ParalabError with what it wrote, where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ParalabError(f"{shlex.join(words)}: {' '.join(done.stderr.split())}")
