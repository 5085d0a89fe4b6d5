import os
import subprocess
import time
from dataclasses import fields
from pathlib import Path

import psutil
import pytest
import torch

from paralab.measure import roofline
from paralab.processes.allowed import cores_allowed, memory_allowed_bytes, memory_available_bytes
from paralab.records import environment

AFFINITY = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("memberships", "files", "quota"),
    [
        ("0::/a/b\n", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 0.5),
        ("0::/gone/from/here\n", {"cpu.max": "25000 100000"}, 0.25),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        (
            "4:memory:/m\n1:cpu,cpuacct:/job\n",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "10000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"},
            0.1,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("", {}, None),
    ],
    ids=["v2 parent", "v2 container", "v2 free", "v1", "v1 free", "none"],
)
def test_cores_allowed(tmp_path: Path, memberships: str, files: dict[str, str], quota: float | None) -> None:
    _write(tmp_path / "membership", memberships)
    for name, text in files.items():
        _write(tmp_path / "cgroup" / name, text + "\n")
    got = cores_allowed(cgroup=tmp_path / "cgroup", memberships=tmp_path / "membership")
    assert got == (AFFINITY if quota is None else quota)


@pytest.mark.parametrize(
    ("memberships", "files", "limit"),
    [
        ("0::/a/b\n", {"a/memory.max": "1048576", "a/b/memory.max": "max"}, 1 << 20),
        ("0::/gone/from/here\n", {"memory.max": "4096"}, 4096),
        ("4:memory:/m\n1:cpu,cpuacct:/job\n", {"memory/m/memory.limit_in_bytes": "8192"}, 8192),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, None),
        ("", {}, None),
    ],
    ids=["v2 parent", "v2 container", "v1", "v1 free", "none"],
)
def test_memory_allowed(tmp_path: Path, memberships: str, files: dict[str, str], limit: int | None) -> None:
    _write(tmp_path / "membership", memberships)
    for name, text in files.items():
        _write(tmp_path / "cgroup" / name, text + "\n")
    got = memory_allowed_bytes(cgroup=tmp_path / "cgroup", memberships=tmp_path / "membership")
    assert got == (psutil.virtual_memory().total if limit is None else limit)


@pytest.mark.parametrize(
    ("memberships", "files", "free"),
    [
        (
            "0::/a\n",
            {"a/memory.max": "5000", "a/memory.current": "3000", "a/memory.stat": "anon 1\ninactive_file 500"},
            2500,
        ),
        (
            "0::/a\n",
            {
                "a/memory.max": "5000",
                "a/memory.current": "4990",  # of files that were read again and again, and of names of files
                "a/memory.stat": "anon 90\nshmem 10\ninactive_file 500\nactive_file 4000\nslab_reclaimable 400",
            },
            4910,
        ),
        ("0::/a\n", {"a/memory.max": "max", "a/memory.current": "3000"}, 8000 * 1024),
        ("0::/a\n", {"a/memory.max": "5000", "a/memory.current": "6000"}, 0),
        (
            "4:memory:/a\n",
            {
                "memory/a/memory.limit_in_bytes": "5000",
                "memory/a/memory.usage_in_bytes": "4000",
                "memory/a/memory.stat": "active_file 1\ntotal_inactive_file 10\ntotal_active_file 20",
            },
            1030,
        ),
        ("", {}, 8000 * 1024),
    ],
    ids=["v2", "v2 full of caches", "v2 free", "v2 over", "v1", "none"],
)
def test_memory_available(tmp_path: Path, memberships: str, files: dict[str, str], free: int) -> None:
    _write(tmp_path / "membership", memberships)
    _write(tmp_path / "meminfo", "MemTotal:   9000 kB\nMemAvailable:   8000 kB\n")
    for name, text in files.items():
        _write(tmp_path / "cgroup" / name, text + "\n")
    places = {"cgroup": tmp_path / "cgroup", "memberships": tmp_path / "membership", "meminfo": tmp_path / "meminfo"}
    assert memory_available_bytes(**places) == free


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@localhost", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def test_commit_and_dirt(tmp_path: Path) -> None:
    assert environment._git(tmp_path) == (None, None)
    _git(tmp_path, "init")
    assert environment._git(tmp_path) == (None, None)  # no commit yet
    (tmp_path / "file").write_text("1")
    _git(tmp_path, "add", "file")
    _git(tmp_path, "commit", "-m", "one")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "result.csv").write_text("untracked files are not the program")
    assert environment._git(tmp_path) == (commit, False)
    (tmp_path / "file").write_text("2")
    assert environment._git(tmp_path) == (commit, True)


def test_facts_of_this_process() -> None:
    got = environment.Environment.read()
    assert got.torch_version == torch.__version__
    assert got.threads == torch.get_num_threads()
    assert len(got.host_hash) == 12
    assert (got.gpu_name is None) == (not torch.cuda.is_available())


def test_names_are_columns_of_the_record() -> None:
    from paralab.measure.steady import StepTimes
    from paralab.records.row import RunRecord

    columns = {f.name for f in fields(RunRecord)}
    assert {f.name for f in fields(environment.Environment)} <= columns
    assert {f.name for f in fields(StepTimes)} <= columns


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("A100-SXM4-40GB", 312),  # as drivers before 470 wrote it
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_datasheets(name: str, tflops: float) -> None:
    peak = roofline.datasheet_peak(name, torch.bfloat16)
    assert peak is not None
    assert peak.flops == pytest.approx(tflops * 1e12)
    assert peak.source.startswith("datasheet: ")


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-SXM3-32GB", 125),
        ("Tesla V100-PCIE-32GB", 112),
        ("Tesla V100S-PCIE-32GB", 130),
        ("Tesla T4", 65),
    ],
)
def test_cards_without_bf16(name: str, tflops: float) -> None:
    peak = roofline.datasheet_peak(name, torch.float16)
    assert peak is not None and peak.flops == pytest.approx(tflops * 1e12)
    assert roofline.datasheet_peak(name, torch.bfloat16) is None


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA H100",
        "NVIDIA H100 NVL 2",
        "NVIDIA H800 PCIe",
        "Tesla V100-SXM3-32GB-H",
        "Tesla V100-FHHL-16GB",
        "NVIDIA RTX A6000 Laptop GPU",
        "X",
    ],
)
def test_almost_the_same_name_is_another_device(name: str) -> None:
    assert {roofline.datasheet_peak(name, dtype) for dtype in (torch.bfloat16, torch.float16)} == {None}


def test_a_dtype_the_device_lacks_has_no_datasheet() -> None:
    assert roofline.datasheet_peak("Tesla V100-SXM2-16GB", torch.bfloat16) is None


def test_measured_peak_is_at_least_a_plain_product_and_cached() -> None:
    began = time.process_time()
    peak = roofline.device_peak(torch.device("cpu"), torch.float32)
    assert time.process_time() - began < 4  # of the processor: it measures for a second
    assert roofline.device_peak(torch.device("cpu"), torch.float32) is peak
    a = torch.randn(512, 512)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    assert peak.flops > 0.3 * 2 * 512**3 / min(seconds)
    assert peak.source.startswith("measured: float32 product of ")


@pytest.mark.parametrize(("threads", "said"), [(3, "3 threads"), (1, "1 thread")])
def test_a_measured_peak_is_the_fastest_product(threads: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    took_s = iter([256**3 * 2 / 3e9, 512**3 * 2 / 8e9, 1024**3 * 2 / 5e9, 2048**3 * 2 / 4e9])
    monkeypatch.setattr(roofline, "_best_seconds", lambda product, device, budget_s: next(took_s))
    monkeypatch.setattr(roofline, "_BUDGET_S", 1e9)  # all four sizes
    peak = roofline._measure(torch.device("cpu"), torch.float32, threads=threads)
    assert peak.flops == pytest.approx(8e9)  # 2 n^3 of each, and the second is the fastest
    assert peak.source == "measured: float32 product of 512, " + said


def test_a_peak_measured_again_never_becomes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [roofline.Peak(flops, "") for flops in (3.0, 1.0, 2.0)]
    monkeypatch.setattr(roofline, "_measured", {})
    monkeypatch.setattr(roofline, "_measure", lambda *args, **kwargs: found.pop())
    peaks = [roofline.measured_peak("cpu", torch.float32, again=again).flops for again in (False, False, True, True)]
    assert peaks == [2.0, 2.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("measured", "share", "left"), [([8.0, 9.0], 0.5, 1), ([8.0, 2.0], 0.5, 0), ([3.0, 2.0], None, 0)]
)
def test_a_share_of_the_peak_is_never_above_one(
    measured: list[float], share: float | None, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "_measured", {})
    monkeypatch.setattr(roofline, "_measure", lambda *args, **kwargs: roofline.Peak(measured.pop(), ""))
    achieved = 4.5 if left else 4.0
    assert roofline.share_of_peak(achieved, torch.device("cpu"), torch.float32) == share
    assert len(measured) == left
