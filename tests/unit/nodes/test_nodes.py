"""Several nodes: command lines, listening addresses, and who is to blame. No processes: nodes are threads here."""

import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from paralab.commands import cluster, node
from paralab.errors import UsageError, WorldError
from paralab.nodes import cpu_quota, membership, namespaces, rendezvous, simulated, simulated_node
from paralab.nodes import start as nodes
from paralab.nodes.membership import Membership
from paralab.nodes.start import NodeRequest
from paralab.processes import interfaces, standby


def request(
    rank: int, port: int, *, count: int = 2, least: int | None = None, procs: int = 1, join_timeout_s: float = 30.0
) -> NodeRequest:
    return NodeRequest(
        min_nodes=least or count,
        max_nodes=count,
        node_rank=rank,
        host="127.0.0.2",
        port=port,
        procs_per_node=procs,
        max_restarts=0,
        join_timeout_s=join_timeout_s,
        node_timeout_s=30.0,
        command=("run",),
    )


@pytest.fixture
def port() -> int:
    with rendezvous.listen("127.0.0.2", 0) as free:
        return free.getsockname()[1]


def together(*requests: NodeRequest) -> list[str | None]:
    """Join as several nodes at once; return what each was told, None where it joined."""
    told: list[str | None] = [None] * len(requests)

    def join(place: int) -> None:
        try:
            with Membership.meet(requests[place]) as member:
                try:
                    member.wait_for_all()
                except WorldError as error:
                    member.report(str(error))
                    raise
        except WorldError as error:
            told[place] = str(error)

    threads = [threading.Thread(target=join, args=(place,)) for place in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_nodes_join(port: int) -> None:
    assert together(request(0, port), request(1, port)) == [None, None]


def test_a_missing_node_is_named(port: int) -> None:
    told = together(*(request(rank, port, count=3, join_timeout_s=1.0) for rank in (0, 2)))
    assert all(text and text.startswith("2 of 3 nodes joined, waiting for node 1, given up") for text in told)


def test_an_elastic_run_starts_without_all(port: int) -> None:
    assert together(request(0, port, count=3, least=1)) == [None]


def test_nodes_that_were_started_differently_are_refused(port: int) -> None:
    told = together(request(0, port, procs=2), request(1, port, procs=4))
    assert all(text and "--nodes 2 --procs-per-node" in text and "use the same on all" in text for text in told)


def test_two_nodes_of_one_number_are_refused(port: int) -> None:
    told = together(request(0, port, count=3), request(1, port, count=3), request(1, port, count=3))
    assert all(text and "two nodes were started with --node-rank 1" in text for text in told)


def test_a_node_zero_that_is_not_there_is_named(port: int) -> None:
    [text] = together(request(1, port, join_timeout_s=1.0))
    assert text is not None and text.startswith(f"node 0 has not opened 127.0.0.2:{port} within 1 s")


@pytest.mark.parametrize(
    ("reports", "cause"),
    [
        ([("rank 0 on node 0 failed: Connection closed by peer", 1.0), ("rank 3 failed: ValueError: x", 2.0)], 1),
        ([("rank 3 failed: ValueError: x", 2.0), ("rank 2 failed: ValueError: y", 1.0)], 1),
        ([("rank 3 failed: Connection reset by peer", 1.0), ("rank 2 was ended by SIGKILL", 1.0)], 1),
        ([("rank 3 failed: ValueError: x", 1.0), ("rank 2 failed: ValueError: y", 2.0)], 0),
    ],
)
def test_the_cause_is_reported_and_not_a_victim(
    port: int, reports: Sequence[tuple[str, float]], cause: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "SETTLE_S", 0.0)
    with Membership.meet(request(0, port, count=1)) as member:
        for text, at_s in reports:
            member.report(text, at_s=at_s)
        assert str(member.first_failure()) == reports[cause][0]


def test_the_store_listens_on_the_address_given_and_on_no_other(port: int) -> None:
    store = rendezvous.host_store("127.0.0.2", port)
    socket.create_connection(("127.0.0.2", port), timeout=1).close()
    for other in ("127.0.0.1", "127.0.0.3"):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((other, port), timeout=1)
    assert rendezvous.join_store("127.0.0.2", port).add("key", 1) == store.add("key", 0)


def test_a_taken_port_is_refused_with_a_free_one() -> None:
    with rendezvous.listen("127.0.0.2", 0) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(WorldError, match=f"port {number} is taken: use --rendezvous 127.0.0.2:") as refused:
            rendezvous.listen("127.0.0.2", number)
    offered = int(str(refused.value).split("127.0.0.2:")[1].split()[0])
    assert offered != number
    rendezvous.listen("127.0.0.2", offered).close()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(WorldError, match=r"192\.0\.2\.1 is not an address of this machine"):  # RFC 5737: for documents
        rendezvous.listen("192.0.2.1", 0)


def test_the_interface_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interfaces.interface_of("127.0.0.1") == "lo"
    assert rendezvous.address_towards("127.0.0.9", 1) == "127.0.0.1"
    monkeypatch.setattr(interfaces.psutil, "net_if_addrs", lambda: {"lo": []})  # as after unshare --net
    with pytest.raises(WorldError, match="type ip link set lo up"):
        interfaces.interface_of("127.0.0.1")
    interfaces.check_interface({"GLOO_SOCKET_IFNAME": "lo"})
    with pytest.raises(WorldError, match="eth99 is no network interface of this machine: name one of lo, or type env"):
        interfaces.check_interface({"GLOO_SOCKET_IFNAME": "lo,eth99"})


GOOD = ["--nodes", "2", "--node-rank", "0", "--rendezvous", "[::1]:29500", "--", "run", "--model", "gpt2"]


def test_a_command_line_of_a_node() -> None:
    asked = node.parse([*GOOD[:-4], "--procs-per-node", "3", *GOOD[-4:]])
    assert (asked.host, asked.port, asked.procs_per_node, asked.elastic) == ("::1", 29500, 3, False)
    assert asked.command == ("run", "--model", "gpt2")
    assert node.parse(["--nodes", "1:3", *GOOD[2:]]).elastic


@pytest.mark.parametrize(
    ("place", "word", "message"),
    [
        (1, "0", "'0' is not a number of nodes: write 3, or 1:3"),
        (1, "3:2", "'3:2' is not a number of nodes"),
        (3, "2", "--node-rank 2 of 2 nodes: use 0 to 1"),
        (5, "nowhere", "--rendezvous nowhere: write HOST:PORT"),
        (5, "host:99999", "--rendezvous host:99999: write HOST:PORT"),
        (7, "rum", "'rum' is neither a Python file nor a paralab command .did you mean run.."),
    ],
)
def test_a_wrong_command_line_of_a_node(place: int, word: str, message: str) -> None:
    words = [*GOOD[:place], word, *GOOD[place + 1 :]]
    with pytest.raises(UsageError, match=message):
        nodes.worker_command(node.parse(words).command)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "2", "--bandwidth", "1gbps", "--", "true"], "'1gbps' is not a bandwidth: write 100mbit"),
        (["--nodes", "2", "--at", "3:cut", "--", "true"], "'3:cut' is not an event: write SECONDS:ACTION:NODE"),
        (["--nodes", "2", "--at", "3:cut:2", "--", "true"], "--at 3:cut:2: nodes are 0 to 1"),
        (["--nodes", "91", "--", "true"], "a cluster has at most 90"),
        (["--nodes", "2"], "no command given: write it after --"),
    ],
)
def test_a_wrong_command_line_of_a_cluster(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cluster.parse(words)


def test_missing_tools_are_named(tmp_path) -> None:
    with pytest.raises(UsageError, match="apt-get install iproute2 util-linux"):
        namespaces.permitted_unshare({"PATH": str(tmp_path)})


@pytest.mark.parametrize(("bandwidth", "size"), [("10mbit", 65536), ("1gbit", 250_000), ("2.5gbit", 625_000)])
def test_bursts(bandwidth: str, size: int) -> None:
    assert simulated_node.burst_bytes(bandwidth) == size


@pytest.mark.parametrize("restarts", [["--nodes", "1:3"], ["--nodes", "3", "--max-restarts", "2"]])
def test_a_training_that_is_started_again_has_to_go_on(restarts: list[str]) -> None:
    where = ["--node-rank", "0", "--rendezvous", "127.0.0.1:29500", "--procs-per-node", "1", *restarts, "--", "train"]
    for words in ([], ["--resume", "runs/a/step-3"], ["--out", "--resume=x"]):
        with pytest.raises(UsageError, match="add --resume, without a path"):
            node.parse([*where, *words])
    assert node.parse([*where, "--resume", "--out", "a"]).command == ("train", "--resume", "--out", "a")


def test_a_node_that_has_left_in_order_is_not_missed(port: int) -> None:
    with Membership.meet(request(0, port)) as first:
        with Membership.meet(request(1, port)) as second:
            for one in (first, second):
                one._check_in()
            assert first._silent(-1) == [0, 1]
        assert first._silent(-1) == [0]


def test_a_node_that_is_silent_is_gone_on_without(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(membership, "SILENT_S", 0.1)
    old = SimpleNamespace(kill=lambda: ended.append("a process"), create_time=lambda: 0.0)
    young = SimpleNamespace(kill=lambda: ended.append("one without that node"), create_time=time.time)
    monkeypatch.setattr(membership.psutil, "Process", lambda: SimpleNamespace(children=lambda recursive: [old, young]))
    two = replace(request(0, port, least=1), node_timeout_s=1.0), replace(request(1, port, least=1), node_timeout_s=1.0)
    with Membership.meet(two[0]) as first:
        first.wait_for_all()
        with Membership.meet(two[1]) as second:  # it comes, is killed and comes again, and never beats
            second.wait_for_all()
            second.wait_for_all()
            first._go_on_without_silent()
            assert ended == []
            time.sleep(1.1)
            first._go_on_without_silent()
            first._go_on_without_silent()
            assert ended == ["a process"]
            second._heard_s = time.monotonic()  # of node 0
        assert first._silent(0) == [0], "the other one has left in order"
    assert capsys.readouterr().err.count("node 1 has not answered for 1 s") == 1


def test_processes_without_work_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    store = rendezvous.host_store("127.0.0.1", 0)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    waiting = threading.Thread(target=standby.stand_by, daemon=True)
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    standby.release()
    waiting.join(5)
    assert not waiting.is_alive()


def test_a_cause_comes_before_its_victims_and_the_first_before_later_ones() -> None:
    failures = [
        membership.Failure(True, 1.0, "lost its peer"),
        membership.Failure(False, 3.0, "later"),
        membership.Failure(False, 2.0, "cause"),
    ]
    assert min(failures).text == "cause"
    for text in ("Connection reset by peer", "Broken pipe", "Connection closed by peer", "Timed out waiting"):
        assert membership._VICTIM.search(text), text
    assert not membership._VICTIM.search("CUDA out of memory")


@pytest.mark.parametrize(
    ("code", "victim", "said"),
    [
        (-15, True, "rank 1 was ended by SIGTERM"),
        (-9, None, "rank 1 was ended by SIGKILL"),
        (70, True, "rank 1 ended with status 70: its message is above"),
        (3, False, "rank 1 ended with status 3: its message is above"),
    ],
)
def test_how_a_process_ended_says_whether_it_is_a_victim(code: int, victim: bool | None, said: str) -> None:
    told: list[tuple[str, bool | None]] = []
    seen = SimpleNamespace(report=lambda text, victim=None, **_: told.append((text, victim)))
    ended = SimpleNamespace(exitcode=code, timestamp=1, error_file="<N/A>")
    nodes._report(seen, "rank 1", ended, SimpleNamespace(has_struck=False))  # type: ignore[arg-type]
    assert told == [(said, victim)]


def test_nodes_of_a_simulated_cluster_share_cores_and_quotas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 5, 7})
    assert simulated.share_cores(2) == [{0, 1}, {2, 5}]
    assert simulated.share_cores(6) == [{0, 1, 2, 5, 7}] * 6
    assert [simulated.shell_status(code) for code in (-15, 3, 0)] == [143, 3, 0]
    cpu_quota._make(tmp_path / "node0", 1.5)
    assert (tmp_path / "node0" / "cpu.max").read_text() == "15000 10000"
