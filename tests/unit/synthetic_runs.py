"""Runs that never happened, for the tests of what reads them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from paralab.records.row import RunRecord
from paralab.records.writing import append

START = datetime(2025, 1, 1, tzinfo=UTC)


def run(number: int = 0, **cells: Any) -> RunRecord:
    """Return a good CPU run of GPT-2 nano under ddp; `number` is its place in time."""
    record = RunRecord(
        run_id=f"run-{number}", repeat=number, started_at=(START + timedelta(minutes=number)).isoformat(), status="ok",
        command="python benchmarks/run.py --strategy ddp --nproc 2", strategy_requested="ddp", strategy="ddp",
        layout="dp2", engine="torch", launcher="torchrun", device="cpu", backend="gloo", world_size=2, nodes=1, dp=2,
        tp=1, pp=1, precision="fp32", model="gpt2", size="nano", unit="tokens", sequence_length=128,
        global_batch_size=8, micro_batch_size=4, accumulation=1, data="alice", data_sha256="ab" * 32,
        step_time_p50_s=0.1, samples_per_s=80.0, tokens_per_s=10240.0, process_peak_bytes=900_000_000, steady=True,
        torch_version="2.13.0", git_commit="abc1234", cpu_model="CPU 1", cores_allowed=2.0, threads=1, host_hash="f00",
    )  # fmt: skip
    strategy = {"strategy_requested": cells["strategy"]} if cells.get("strategy") else {}
    made = replace(record, **strategy, **cells)
    digest = sha256(repr(made).encode()).hexdigest()[:8]  # other runs have other ids
    return made if "run_id" in cells else replace(made, run_id=f"run-{number}-{digest}")


def runs(times: Sequence[float], *, first: int = 0, every: int = 1, **cells: object) -> list[RunRecord]:
    """Return one run for each step time, `every` places apart."""
    return [
        run(first + every * i, step_time_p50_s=time, samples_per_s=8 / time, tokens_per_s=1024 / time, **cells)
        for i, time in enumerate(times)
    ]


def interleaved(
    rng: np.random.Generator, *, repeats: int, slowdown: float = 1.0, drift: float = 1.0
) -> tuple[list[float], list[float]]:
    """Return median step times of runs A B A B ... on a machine that drifts, with noise of 1.5% and a rare hiccup.

    A drift of 1 is up to 1% a run and a slow wave of 2%.
    """
    slots = np.arange(2 * repeats)
    speeds = 1 + drift * (rng.uniform(-0.01, 0.01) * slots + 0.02 * np.sin(slots / 3 + rng.uniform(0, 6)))
    noise = rng.normal(1, 0.015, slots.size) + 0.1 * (rng.uniform(size=slots.size) < 0.05)
    times = 0.1 * speeds * noise
    return list(times[0::2]), list(times[1::2] * slowdown)


def write(path: Path, records: Iterable[RunRecord]) -> str:
    """Add rows to a result file, and return its path."""
    for record in records:
        append(path, record)
    return str(path)
