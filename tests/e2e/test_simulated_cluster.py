"""A simulated cluster: real launchers on network namespaces, shaped links, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from paralab import checkpoint
from paralab.checkpoint.folder import verify
from paralab.errors import UsageError
from paralab.nodes.namespaces import permitted_unshare
from paralab.records.reading import read
from tests.e2e.on_nodes import BYTES

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "tests" / "e2e" / "on_nodes.py")
PARALAB = [sys.executable, "-m", "paralab.cli"]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PATH": PATH, "PYTHONPATH": str(ROOT)}
ENVIRONMENT |= {"CUDA_VISIBLE_DEVICES": "0"}  # which nodes do not see
BURST = 65536  # bytes that pass at once, before the limit holds


@pytest.fixture(scope="module", autouse=True)
def permitted() -> None:
    try:
        permitted_unshare(os.environ | {"PATH": f"{PATH}:/usr/sbin:/sbin"})
    except UsageError as error:
        pytest.skip(str(error))


@pytest.fixture
def marker() -> Iterator[str]:
    """Yield a word to put on command lines; at the end no process has it, and the machine's network is as before."""
    links = psutil.net_if_addrs().keys()
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    word = uuid4().hex
    yield word
    deadline_s = time.monotonic() + 3
    while (left := marked(word)) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert left == []
    assert psutil.net_if_addrs().keys() == links
    assert subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout == names


def marked(word: str) -> list[list[str]]:
    """Return the command lines on this machine that hold a word."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if any(word in part for part in line)]


def cluster(*words: str, timeout_s: float = 200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PARALAB, "cluster", *words], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout_s
    )


LAUNCHERS = {
    "paralab": [SCRIPT],
    "accelerate": [
        *("accelerate", "launch", "--config_file", "ds_configs/nodes/accelerate.yaml"),
        *("--machine_rank", "$NODE_RANK", "--main_process_ip", "$MASTER_ADDR", SCRIPT),
    ],
    "deepspeed": [
        *("deepspeed", "--hostfile", "ds_configs/nodes/hostfile", "--no_ssh"),
        *("--node_rank", "$NODE_RANK", "--master_addr", "$MASTER_ADDR", SCRIPT),
    ],
}


@pytest.mark.parametrize(
    ("launcher", "bandwidth", "bits_per_s"),
    [("paralab", "10mbit", 10e6), ("accelerate", "1gbit", 1e9), ("deepspeed", "100mbit", 100e6)],
)
def test_every_launcher_spans_the_nodes_at_the_bandwidth_asked_for(
    launcher: str, bandwidth: str, bits_per_s: float, tmp_path: Path, marker: str
) -> None:
    command = [*LAUNCHERS[launcher], str(tmp_path), "all_reduce"]
    if launcher != "paralab":
        line = f"ACCELERATE_USE_CPU=true DS_ACCELERATOR=cpu exec {' '.join(command)}"
        command = ["bash", "-c", line, marker]
    done = cluster("--nodes", "2", "--bandwidth", bandwidth, "--", *command)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["values"] for rank in ranks] == [[3.0], [3.0]]
    assert [rank["host"] for rank in ranks] == ["node0", "node1"]
    # in a ring of two, each node sends half of the buffer twice
    least_s = (BYTES - BURST) * 8 / bits_per_s
    assert least_s <= max(rank["seconds"] for rank in ranks) < 2 * least_s + 2


def test_a_node_that_does_not_start_is_named(marker: str) -> None:
    done = cluster("--nodes", "3", "--join-timeout", "2", "--at", "0:kill:1", "--", SCRIPT, marker, "all_reduce")
    assert done.returncode == 2
    assert "[node 0] paralab: error: 2 of 3 nodes joined, waiting for node 1" in done.stderr
    assert "[node 2] paralab: error: 2 of 3 nodes joined, waiting for node 1" in done.stderr


@pytest.mark.parametrize(
    ("how", "status", "cause"),
    [
        ("raise", 1, "paralab: error: rank 1 on node 1 failed: ValueError: batch 17 is bad"),
        ("lose_launcher", 128 + signal.SIGKILL, "paralab: error: node 1 is gone (noticed by rank"),
    ],
)
def test_every_node_reports_what_failed_first(how: str, status: int, cause: str, tmp_path: Path, marker: str) -> None:
    done = cluster("--nodes", "3", "--", SCRIPT, str(tmp_path / marker), how)
    assert done.returncode == status
    said = [line for line in done.stderr.splitlines() if "paralab: error:" in line]
    reporting = (0, 1, 2) if how == "raise" else (0, 2)
    assert sorted(line[: len(f"[node 0] {cause}")] for line in said) == [f"[node {node}] {cause}" for node in reporting]


def test_the_first_node_that_fails_ends_the_others(marker: str) -> None:
    began_s = time.monotonic()
    say = 'echo out of "$NODE_RANK" GPUs:"$CUDA_VISIBLE_DEVICES"'
    command = f'{say}; test "$NODE_RANK" = 0 || exit 7; sleep 100 & sleep 100'
    done = cluster("--nodes", "2", "--", "bash", "-c", command, marker)
    assert done.returncode == 7
    assert sorted(done.stdout.splitlines()) == ["[node 0] out of 0 GPUs:", "[node 1] out of 1 GPUs:"]
    assert time.monotonic() - began_s < 15


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_nothing_outlives_the_command(number: int, status: int, marker: str) -> None:
    inner = ["bash", "-c", f"setsid bash -c 'sleep 100; true' {marker} & sleep 100; true", marker]
    running = subprocess.Popen([*PARALAB, "cluster", "--nodes", "2", "--", *inner], cwd=ROOT, env=ENVIRONMENT)
    try:
        wait_for(lambda: len([line for line in marked(marker) if line[0] == "bash"]) == 4)
        running.send_signal(number)
        began_s = time.monotonic()
        assert running.wait(timeout=20) == status
        assert time.monotonic() - began_s < 8  # less than the grace: the command has heard the signal
    finally:
        running.kill()


def wait_for(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.1)


def test_a_node_can_be_cut_off_and_connected_again(marker: str) -> None:
    plugged = "ip link show eth0 | grep -q LOWER_UP"
    command = (
        f'test "$NODE_RANK" = 0 && exit; {plugged} && echo plugged; while {plugged}; do sleep 0.1; done; echo cut;'
        f" until {plugged}; do sleep 0.1; done; echo plugged"
    )
    done = cluster("--nodes", "2", "--at", "1:cut:1", "--at", "2:heal:1", "--", "bash", "-c", command, marker)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[node 1] plugged", "[node 1] cut", "[node 1] plugged"]


def test_a_link_that_is_down_for_three_seconds_changes_nothing(tmp_path: Path, marker: str) -> None:
    done = cluster("--nodes", "2", "--", SCRIPT, str(tmp_path), "cut_3_s", marker)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text())["difference"] < 1e-6


def test_a_node_that_is_cut_off_ends_on_both_sides(tmp_path: Path, marker: str) -> None:
    began_s = time.monotonic()
    done = cluster("--nodes", "2", "--node-timeout", "3", "--", SCRIPT, str(tmp_path), "cut", marker)
    assert done.returncode == 1
    assert "[node 0] paralab: error: node 1 has not answered for 3 s" in done.stderr
    assert "[node 1] paralab: error: node 1 has not reached node 0 for 3 s" in done.stderr
    assert time.monotonic() - began_s < 60
    (row,) = read(tmp_path / "runs.csv")
    assert (row.status, row.reason) == ("crash", "node 1 has not answered for 3 s")
    assert row.failed_step in (5, 6)  # node 0 has given its share of step 5 away
    good = checkpoint.latest(tmp_path)
    assert good is not None and good.name in ("step-2", "step-4")
    verify(good)


def test_without_the_right_it_says_what_to_type() -> None:
    forbid = 'echo 0 >/proc/sys/user/max_net_namespaces && exec "$@"'
    done = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "sh",
            "-c",
            forbid,
            "sh",
            *PARALAB,
            "cluster",
            "--nodes=2",
            "--",
            "true",
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 2
    assert "may not make network namespaces" in done.stderr and "run as root" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_share_of_a_core(marker: str) -> None:
    burn = (
        "import time; from paralab.records.environment import Environment as E\n"
        "r = E.read(); u = time.process_time(); t = time.monotonic()\n"
        "while time.monotonic() < t + 1: pass\nprint(r.cores_allowed, r.link_mbit_per_s, time.process_time() - u)"
    )
    shape = ("--cores-per-node", "0.25", "--bandwidth", "2.5gbit")
    before = control_groups()
    done = cluster("--nodes", "2", *shape, "--", sys.executable, "-c", burn, marker)
    if "needs the right to make control groups" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    told = [[float(word) for word in line.split()[2:]] for line in done.stdout.splitlines()]
    assert len(told) == 2
    for cores, link_mbit_per_s, used_s in told:
        assert (cores, link_mbit_per_s) == (0.25, 2500.0)
        assert 0 < used_s < 0.35
    assert control_groups() == before


def control_groups() -> set[Path]:
    return {made for folder in ("", "cpu") for made in Path("/sys/fs/cgroup", folder).glob("paralab-*")}
