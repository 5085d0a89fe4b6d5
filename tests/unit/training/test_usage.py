"""What a training run says of the processors and the memory that it uses."""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from paralab.commands import train
from paralab.layout import Layout
from paralab.measure.telemetry import Telemetry
from paralab.processes.mesh import Mesh
from paralab.records.log import StepRecord, TelemetryRecord, read_log
from paralab.records.reading import read
from paralab.training import usage
from paralab.training.evaluate import Evaluator, Validation
from paralab.training.usage import Used

QUICK = "--model gpt2 --size tiny --global-batch-size 8 --eval-samples 4 --threads 1 --steps 9 --log-every 2".split()


def test_a_run_says_what_its_steps_used_without_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = Evaluator.__call__

    def slowly(self: Evaluator) -> Validation:
        time.sleep(1.0)
        return evaluate(self)

    monkeypatch.setattr(Evaluator, "__call__", slowly)
    monkeypatch.setattr(usage, "LEAST_S", 0.0)  # a record for each line
    assert train.main([*QUICK, "--eval-every", "3", "--save-every", "4", "--out", str(tmp_path)]) == 0
    log = read_log(tmp_path / "log" / "usage-rank0.jsonl")
    found = [x for x in log if isinstance(x, TelemetryRecord)]
    assert [(x.step, x.steps) for x in found] == [(1, 1), (2, 1), (3, 1), (5, 2), (7, 2), (8, 1)], "without step 0"
    steps = read_log(tmp_path / "log" / "rank0.jsonl")
    assert len(steps) == 9, "a line for each step, and no other"
    steps_s = sum(x.step_time_s or 0.0 for x in steps if isinstance(x, StepRecord))
    assert sum(x.window_s for x in found) < steps_s + 2, "three evaluations of a second each are left out"
    (row,) = read(tmp_path / "runs.csv")
    assert row.cpu_utilisation_mean_share is not None and 0 < row.cpu_utilisation_mean_share <= 1.1
    mean = sum((x.cpu_utilisation_mean_share or 0.0) * x.window_s for x in found) / sum(x.window_s for x in found)
    assert row.cpu_utilisation_mean_share == pytest.approx(mean)
    assert row.process_peak_bytes is not None and row.process_peak_bytes > 2**26
    assert row.gpu_utilisation_mean_share is None and row.gpu_allocated_peak_bytes is None, "unknown is empty"
    assert f"used: CPU {mean:.0%} (at most " in capsys.readouterr().out


def test_short_intervals_share_a_record_and_the_last_one_is_written(tmp_path: Path) -> None:
    assert train.main([*QUICK, "--steps", "5", "--out", str(tmp_path)]) == 0
    found = [x for x in read_log(tmp_path / "log" / "usage-rank0.jsonl") if isinstance(x, TelemetryRecord)]
    assert sum(x.steps for x in found) == 4 and found[-1].step == 4
    assert all(x.window_s >= usage.LEAST_S for x in found[:-1])
    for checkpoint in tmp_path.glob("step-*"):
        shutil.rmtree(checkpoint)
    (tmp_path / "latest").unlink()
    assert train.main([*QUICK, "--steps", "5", "--out", str(tmp_path)]) == 0  # begun anew: what was before is set aside
    again = [x for x in read_log(tmp_path / "log" / "usage-rank0.jsonl") if isinstance(x, TelemetryRecord)]
    assert sum(x.steps for x in again) == 4


def test_energy_per_token_is_that_of_all_steps_that_were_measured() -> None:
    total = Telemetry(window_s=1.0, samples=2, sampler_share=0.0, cpu_energy_j=90.0)
    meter: Any = SimpleNamespace(total=total, steps=3)
    used = usage.used_by_all(Mesh(Layout(), torch.device("cpu")), meter, nodes=1, tokens_per_step=10)
    assert (used.columns["energy_j"], used.columns["energy_per_token_j"]) == (90.0, 3.0)


def test_the_line_at_the_end_of_a_run_on_gpus() -> None:
    known = dict.fromkeys(("gpu_utilisation_mean_share", "gpu_utilisation_max_share"), 0.5)
    known |= {"gpu_power_mean_w": 610.4, "gpu_power_max_w": 698.0, "gpu_used_max_bytes": 40 * 2**30}
    known |= {"cpu_utilisation_mean_share": 0.1, "cpu_utilisation_max_share": 0.25, "process_peak_bytes": 2**31}
    assert str(Used({**known, "energy_j": 1234567.0, "energy_source": "nvml"})) == (
        "GPU 50% (at most 50%), 40 GiB in use on it, 610 W (at most 698 W), CPU 10% (at most 25%) of the cores "
        "allowed, 2 GiB in a process, energy of the GPUs 1,234,567 J"
    )
