"""Membership of the nodes of one run: which have joined, which are alive, and which failed first.

All of it stands in one store that node 0 hosts, the one that the rendezvous uses too.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import gettempdir
from uuid import uuid4

import psutil

from paralab.errors import RankError, WorldError
from paralab.nodes.rendezvous import address_towards, host_store, join_store, wait_for_port
from paralab.nodes.start import NodeRequest

POLL_S = 0.1
BEAT_S = 0.5
SETTLE_S = 1.0  # failures on several nodes that have one cause are all reported within this time
SILENT_S = 3.0  # six beats missed
GRACE_S = 5.0  # from the alarm to the end, also where the launcher itself is stuck
WATCH_ENDS_S = 2.0  # an answer of the store takes no longer, unless node 0 is gone
LINGER_S = 10.0  # node 0 keeps the store open for the others, but not longer

# what a rank says when another one went away
_VICTIM = re.compile(
    "closed by peer|reset by peer|broken pipe|connection refused|remote process exited|timed ?out", re.IGNORECASE
)


@dataclass(frozen=True, order=True)
class Failure:
    """One reported failure; the smallest is the one that caused the others."""

    victim: bool  # whether it only says that another rank went away
    at_s: float  # since the epoch, on the clock of the node that reports
    text: str
    exit_status: int = 1


class Membership:
    """One node's view of all. Made by `Membership.meet`."""

    def __init__(self, request: NodeRequest, address: str) -> None:
        self.address = address  # of this node, as the others reach it
        self.launch = ""  # names this launch on all nodes, from when it has joined
        self.alarmed = False  # whether the watch has asked this node to end
        self._request = request
        self._rank = request.node_rank
        # torch's rendezvous has a connection of its own: it waits on it, and whoever shares it would wait too
        self._store = join_store(request.host, request.port)
        self._done = threading.Event()
        self._heard_s = time.monotonic()  # when node 0 last answered
        self._given_up: set[int] = set()
        self._watching: list[threading.Thread] = []
        # made when there is an alarm, for ranks that hear no signal; see `heed_alarm`
        self.alarm_file = Path(gettempdir()) / f"paralab-alarm-{uuid4().hex}"
        self._beats: dict[int, tuple[int, float]] = {}  # node -> its count of beats, and when that last changed

    @classmethod
    @contextmanager
    def meet(cls, request: NodeRequest) -> Iterator["Membership"]:
        """Open the store on node 0, connect to it on the others; node 0 closes it last.

        Raises: WorldError when the port is taken, or when node 0 does not answer within the join timeout.
        """
        if request.node_rank == 0:
            address, hosted = request.host, host_store(request.host, request.port)
        else:
            wait_for_port(request.host, request.port, timeout_s=request.join_timeout_s)
            address, hosted = address_towards(request.host, request.port), None
        membership = cls(request, address)
        try:
            yield membership
        finally:
            membership._leave()
            membership._end_watch()
            del hosted  # closes it

    def wait_for_all(self) -> None:
        """Return when enough nodes have joined; say who is missing while waiting.

        Raises: WorldError after the join timeout, for two nodes of one number, and for nodes that were started
        with different numbers of nodes or processes.
        """
        try:
            self._check_in()
            self._await_others()
        except RuntimeError as error:
            raise WorldError("node 0 has ended: its message says why") from error

    def _await_others(self) -> None:
        deadline_s = time.monotonic() + self._request.join_timeout_s
        said = ""
        while len(joined := self._marked("joined")) < self._request.min_nodes:
            if failures := self._failures():
                raise WorldError(min(failures).text)
            line = self._who_is_missing(joined)
            if time.monotonic() > deadline_s:
                raise WorldError(
                    f"{line}, given up after {self._request.join_timeout_s:g} s: start them with the same --nodes and"
                    f" --rendezvous {self._request.host}:{self._request.port}"
                )
            if line != said:
                print(f"paralab: {line}", file=sys.stderr, flush=True)
                said = line
            time.sleep(POLL_S)

    def _check_in(self) -> None:
        fewest, most = self._request.min_nodes, self._request.max_nodes
        nodes = f"{fewest}:{most}" if self._request.elastic else f"{most}"
        plan = f"--nodes {nodes} --procs-per-node {self._request.procs_per_node}"
        agreed = self._store.compare_set("plan", "", plan).decode()
        if agreed != plan:
            raise WorldError(f"node {self._rank} was started with {plan}, others with {agreed}: use the same on all")
        self.launch = self._store.compare_set("launch", "", uuid4().hex).decode()
        if self._store.add(f"joined/{self._rank}", 1) > 1 and not self._request.elastic:
            raise WorldError(f"two nodes were started with --node-rank {self._rank}: give each its own")

    def _who_is_missing(self, joined: set[int]) -> str:
        missing = [str(node) for node in range(self._request.max_nodes) if node not in joined]
        return f"{len(joined)} of {self._request.min_nodes} nodes joined, waiting for node {', '.join(missing)}"

    def _is_there(self, node: int) -> bool:
        if not self._request.elastic:
            return self._count("joined", node) > 0 and not self._count("left", node)
        return self._count("left", node) < self._count("joined", node)

    def _marked(self, mark: str) -> set[int]:
        return {node for node in range(self._request.max_nodes) if self._count(mark, node)}

    def _count(self, mark: str, node: int) -> int:
        return self._store.add(f"{mark}/{node}", 0)

    def keep_watch(self) -> None:
        """From now on send this process SIGTERM, with `alarmed` set, when a node has failed or fallen silent."""
        self._watching = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._guard)]
        for thread in self._watching:
            thread.start()

    def _end_watch(self) -> None:
        """Wait for the threads of the watch: one inside the store when Python ends would abort this process."""
        for thread in self._watching:
            thread.join(WATCH_ENDS_S)

    def _beat(self) -> None:
        with suppress(RuntimeError):  # node 0 is gone, which the guard notices
            while not self._done.wait(BEAT_S):
                self._store.add(f"beat/{self._rank}", 1)
                self._heard_s = time.monotonic()
                if self._request.elastic:
                    self._go_on_without_silent()
                elif self._rank == 0:
                    self._report_silent()
                if self._store.check(["failures"]):
                    self._alarm()

    def _report_silent(self) -> None:
        limit_s = self._request.node_timeout_s
        if not self.alarmed and (silent := self._silent(limit_s)):
            self._append(Failure(False, time.time(), f"node {silent[0]} has not answered for {limit_s:g} s"))

    def _go_on_without_silent(self) -> None:
        """End the processes of this node that may wait for a silent one: they start again, without it."""
        limit_s = self._request.node_timeout_s
        silent = set(self._silent(limit_s)) - {self._rank}
        for node in sorted(silent - self._given_up):
            silent_s = time.monotonic() - self._beats[node][1]
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    # younger ones were started without it: a rendezvous waits SILENT_S for those that may yet come
                    if time.time() - process.create_time() > silent_s - SILENT_S:
                        line = f"paralab: node {node} has not answered for {limit_s:g} s: continuing without it"
                        print(line, file=sys.stderr, flush=True)
                        process.kill()
        self._given_up = silent

    def _silent(self, over_s: float) -> list[int]:
        """Return the nodes that joined, did not leave, and have not been heard of for `over_s`."""
        now_s = time.monotonic()
        there = [node for node in range(self._request.max_nodes) if self._is_there(node)]
        for node in there:
            count = self._count("beat", node)
            if node not in self._beats or self._beats[node][0] != count:
                self._beats[node] = (count, now_s)
        return [node for node in there if now_s - self._beats[node][1] > over_s]

    def _guard(self) -> None:
        """Watch the clock: requests to node 0 wait for many minutes when the network is cut."""
        while not (self.alarmed or self._cut_off()):
            if self._done.wait(BEAT_S):
                return
        self._alarm()
        if not self._done.wait(GRACE_S):
            # the main thread waits for node 0, and so cannot handle the signal
            error = self.first_failure()
            print(f"paralab: error: {error}", file=sys.stderr, flush=True)
            for process in psutil.Process().children(recursive=True):
                process.kill()
            self._leave()
            os._exit(error.exit_status)

    def _cut_off(self) -> bool:
        return time.monotonic() - self._heard_s > self._request.node_timeout_s

    def _alarm(self) -> None:
        if not (self.alarmed or self._done.is_set()):
            self.alarmed = True
            os.kill(os.getpid(), signal.SIGTERM)
            self._write_alarm()

    def _write_alarm(self) -> None:
        """Tell this node's ranks why it ends: what is known at once, then what all reports together say."""
        with suppress(RuntimeError, ValueError, OSError):  # the cause is not known, or the disk is full
            if not self._cut_off():  # else this would wait for node 0
                self._tell_ranks(min(self._failures()).text)
            self._tell_ranks(str(self.first_failure()))

    def _tell_ranks(self, text: str) -> None:
        if not self._done.is_set():
            written = self.alarm_file.with_suffix(".new")
            written.write_text(json.dumps({"reason": text, "decides": self._rank == 0}))
            written.rename(self.alarm_file)

    def report(self, text: str, *, at_s: float | None = None, exit_status: int = 1, victim: bool | None = None) -> None:
        """Tell all nodes that the run has failed; `at_s` is when, in seconds since the epoch (now by default).

        Whether it is a victim is judged by the text where it is not said.
        """
        text = " ".join(text.split())
        victim = bool(_VICTIM.search(text)) if victim is None else victim
        with suppress(RuntimeError):
            self._append(Failure(victim, time.time() if at_s is None else at_s, text, exit_status))

    def _append(self, failure: Failure) -> None:
        # missing in torch's own stubs
        self._store.append("failures", json.dumps(asdict(failure)) + "\n")  # type: ignore[attr-defined]

    def _failures(self) -> list[Failure]:
        if not self._store.check(["failures"]):
            return []
        return [Failure(**json.loads(line)) for line in self._store.get("failures").decode().splitlines()]

    def first_failure(self) -> RankError:
        """Return what every node should raise: the cause, not a rank that only lost its connection to it."""
        if self._cut_off():
            return RankError(f"node {self._rank} has not reached node 0 for {self._request.node_timeout_s:g} s")
        try:
            cause = self._judge()
        except RuntimeError:
            return RankError(f"node 0, which hosts the rendezvous, is gone (noticed by node {self._rank})")
        error = RankError(cause.text)
        error.exit_status = cause.exit_status
        return error

    def _judge(self) -> Failure:
        time.sleep(SETTLE_S)
        first = min(self._failures())
        deadline_s = time.monotonic() + SILENT_S + 2 * BEAT_S
        # nobody has reported a cause yet: a node that went away without a word is one
        while first.victim and time.monotonic() < deadline_s:
            if silent := self._silent(SILENT_S):
                text = f"node {silent[0]} is gone (noticed by {first.text})"
                self._append(Failure(False, first.at_s, text))
            time.sleep(BEAT_S / 2)
            first = min(self._failures())
        return first

    def _leave(self) -> None:
        self._done.set()
        for file in (self.alarm_file, self.alarm_file.with_suffix(".new")):
            file.unlink(missing_ok=True)
        if self._cut_off():
            return
        with suppress(RuntimeError):
            times = 1
            if self._request.elastic:  # a node that was killed and came again has joined more often
                times = self._count("joined", self._rank) - self._count("left", self._rank)
            self._store.add(f"left/{self._rank}", times)
            deadline_s = time.monotonic() + LINGER_S
            while self._rank == 0 and time.monotonic() < deadline_s and self._others_to_wait_for():
                time.sleep(POLL_S)

    def _others_to_wait_for(self) -> set[int]:
        # counts, since two nodes may have come with one number
        there = {node for node in self._marked("joined") if self._count("left", node) < self._count("joined", node)}
        return there - set(self._silent(SILENT_S))
