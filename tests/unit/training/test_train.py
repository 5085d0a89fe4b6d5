"""`paralab train` in one process: what it reads, what it leaves behind, how it stops and goes on."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from paralab import checkpoint
from paralab.axes import initialise
from paralab.commands import train
from paralab.console.clock import Moment
from paralab.data import open_dataset
from paralab.data.dataset import Batch
from paralab.engines.engine import StepResult
from paralab.engines.native import NativeEngine
from paralab.errors import ConfigError, DivergedError, FolderInUseError, LayoutError, RankError, UsageError
from paralab.inference.restore import restore
from paralab.measure import roofline
from paralab.measure.roofline import Peak
from paralab.options.files import load
from paralab.planning.resolve import resolve
from paralab.processes.mesh import Mesh
from paralab.processes.rank import Rank
from paralab.records.log import read_steps
from paralab.records.reading import read
from paralab.records.requested import Requested
from paralab.training import goodput, lock, loop, screen
from paralab.training.evaluate import Evaluator, Validation
from paralab.training.interval import _units_per_s, check_finite
from paralab.training.lock import FolderLock
from paralab.training.outcome import Outcome, record_of
from paralab.training.usage import Used

# tensors this small are slower on several threads
QUICK = "--model gpt2 --size tiny --global-batch-size 8 --eval-samples 20 --log-every 4 --threads 1".split()
PYTHON = Rank(0, 1, 0, 1, "python")


def run(folder: Path, *words: str) -> int:
    return train.main(["--out", str(folder), *words])


def losses(folder: Path) -> dict[int, float]:
    return {record.step: record.loss for record in read_steps(folder / "log" / "rank0.jsonl")}


def validations(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Send this process a signal while that step runs."""
    take = NativeEngine.step

    def step_and_signal(engine: NativeEngine, batch: Batch) -> StepResult:
        if engine.steps_done == step:
            os.kill(os.getpid(), number)
        return take(engine, batch)

    monkeypatch.setattr(NativeEngine, "step", step_and_signal)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 10 steps."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(folder, *QUICK, "--steps", "10", "--eval-every", "5", "--save-every", "4", "--keep-last", "2") == 0
    return folder


def test_what_a_run_leaves(finished: Path) -> None:
    assert list(losses(finished)) == list(range(10))
    assert [x["step"] for x in validations(finished)] == [5, 10]
    assert sorted(path.name for path in finished.glob("step-*")) == ["step-10", "step-8"]
    assert checkpoint.best(finished) == finished / "step-10"
    assert load(finished / "config.toml")["layout"] == "dp1"
    (row,) = read(finished / "runs.csv")
    assert (row.status, row.layout, row.measured_steps) == ("ok", "dp1", 10)
    assert (row.loss_first, row.loss_last) == (losses(finished)[0], losses(finished)[9])
    assert 0 < row.goodput_share < 1


def test_the_log_has_the_numbers_of_each_step(finished: Path) -> None:
    records = read_steps(finished / "log" / "rank0.jsonl")
    # a cosine from the peak to a tenth of it
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert [x.learning_rate for x in records] == pytest.approx([6e-4 * share for share in cosine])
    assert [x.samples for x in records] == [8] * 10
    taken_s = [x.step_time_s for x in records]
    # lines, checkpoints and evaluations end an interval: after steps 4, 5, 8 and 10
    assert taken_s == [taken_s[i] for i in (0, 0, 0, 0, 4, 5, 5, 5, 8, 8)] and len(set(taken_s)) == 4
    assert all(0 <= x.data_wait_s < x.step_time_s for x in records if x.data_wait_s and x.step_time_s)


def test_the_row_of_a_run_is_its_outcome_by_hand() -> None:
    work = resolve(train.read([*QUICK, "--layout", "dp2", "--steps", "10"], PYTHON))
    outcome = Outcome(step=10, first_loss=5.0, last_loss=4.0, last_grad_norm=0.5, steps=6, steps_s=3.0, waits_s=0.3)
    used = Used({"process_peak_bytes": 7000, "energy_j": 12.0})
    mesh = Mesh(work.layout, torch.device("cpu"))
    row = record_of(work, Requested(), PYTHON, mesh, outcome, cost={"restarts": 2}, used=used)
    assert (row.status, row.restarts, row.measured_steps, row.process_peak_bytes) == ("ok", 2, 6, 7000)
    assert (row.energy_j, row.gpu_power_mean_w) == (12.0, None)
    assert (row.samples_per_s, row.tokens_per_s) == (6 * 8 / 3.0, 6 * 8 * 16 / 3.0)  # 16 tokens a sample
    assert row.data_wait_share == pytest.approx(0.1)
    assert (row.loss_first, row.loss_last, row.grad_norm_last) == (5.0, 4.0, 0.5)


def test_what_a_line_shows_is_counted_over_all_devices() -> None:
    work = resolve(train.read([*QUICK, "--layout", "dp2", "--steps", "10"], PYTHON))
    assert _units_per_s(work, 2.0) == 2 * 8 * 16
    flops = 16 * (6 * (8 * 12 * 32 * 32 + 257 * 32) + 12 * 8 * 32 * 16)  # of a sample of 16 tokens
    assert loop._device_flops(work, 2.0) == pytest.approx(flops * 8 * 2 / 2)


def test_the_same_command_saves_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # what another process would bring along
    assert run(tmp_path, *QUICK, "--steps", "10", "--eval-every", "5", "--save-every", "4", "--keep-last", "2") == 0
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    for step in ("step-8", "step-10"):
        assert (tmp_path / step / "manifest.json").read_text() == (finished / step / "manifest.json").read_text()
    initialise.seed_generators(0, stage=0, data_rank=0)
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item()), "training draws from none of them"
    initialise.seed_generators(0, stage=0, data_rank=1)
    assert torch.rand(()).item() != drawn[2]


def test_what_it_does_is_told_from_the_start_and_the_bar_moves_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bars: list[tuple[str, float]] = []
    metrics = screen.Shown.metrics

    def shown(self: screen.Shown, done: int, step: Callable = screen.Shown.step) -> None:
        step(self, done)
        bars.append(("step", self.bar.tasks[0].completed))

    monkeypatch.setattr(screen.Shown, "step", shown)
    monkeypatch.setattr(
        screen.Shown, "metrics", lambda self, found: (bars.append(("metrics", found.step)), metrics(self, found))
    )
    assert run(tmp_path, *QUICK, "--steps", "3") == 0
    assert bars == [("step", 1), ("step", 2), ("step", 3), ("metrics", 3)]
    lines = [re.sub(r"^\[ *\d+\.\d s\] ", "", line) for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        f"training gpt2 tiny on its default data: 3 steps, in {tmp_path}",
        "reading the data",
        "building the model",
        "the first step",
    ]


def test_the_first_line_waits_for_nothing_heavy() -> None:
    code = "import sys, paralab.commands.train; print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout == "[]\n"


def test_bits_per_byte_are_the_loss_over_the_bytes_of_a_token(finished: Path) -> None:
    found = validations(finished)[-1]
    config = resolve(train.read(QUICK, PYTHON)).model_config
    bytes_per_token = open_dataset("alice", config=config, split="validation").bytes_per_token  # type: ignore[attr-defined]
    assert found["samples"] == 20
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2) / bytes_per_token)
    assert found["bits_per_byte"] < 8, "better than not knowing anything of a byte"


def test_a_folder_with_a_run_is_not_overwritten(finished: Path) -> None:
    with pytest.raises(ConfigError, match="has step-10 already: add --resume"):
        run(finished, *QUICK)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_in_order_and_the_run_goes_on_as_if_it_had_not(
    number: signal.Signals, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*QUICK, "--steps", "10", "--eval-every", "5", "--save-every", "4"]
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        stop_at(patch, 5, number)
        assert run(tmp_path, *words) == 128 + number
    assert signal.getsignal(number) == before
    assert checkpoint.latest(tmp_path) == tmp_path / "step-6"
    assert run(tmp_path, "--resume") == 0  # everything else as it was
    assert losses(tmp_path) == losses(finished)
    assert validations(tmp_path)[-1] == validations(finished)[-1]
    stopped, ended = read(tmp_path / "runs.csv")
    assert (stopped.status, stopped.reason) == ("aborted", f"stopped by {number.name}")
    assert (ended.status, ended.measured_steps) == ("ok", 4)


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_batch(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"at step \d, whose batch is samples \d+ to \d+ of the order of seed 0"):
        run(tmp_path, *QUICK, "--steps", "12", "--learning-rate", "1e38", "--save-every", "4")
    (row,) = read(tmp_path / "runs.csv")
    assert row.status == "diverged"
    assert row.failed_step is not None and not math.isfinite(losses(tmp_path)[row.failed_step])
    assert checkpoint.latest(tmp_path) is None, "weights that are not numbers were saved"


def test_a_norm_may_overflow_in_fp16_alone_and_a_loss_never() -> None:
    work = {name: resolve(train.read([*QUICK, "--precision", name], PYTHON)) for name in ("fp16", "fp32")}
    check_finite(3, 1.0, math.inf, work["fp16"])
    for name, loss, norm in (("fp16", math.nan, 1.0), ("fp32", 1.0, math.inf)):
        with pytest.raises(DivergedError, match="at step 3, whose batch is samples 24 to 31 of the order"):
            check_finite(3, loss, norm, work[name])


def test_early_stopping_counts_from_the_best_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = iter([5.0, 5.5, 5.0, 0.0, 4.5, 4.0, 4.25])  # a better one after two that are not, then three more
    monkeypatch.setattr(Evaluator, "__call__", lambda self: Validation(20, next(found)))
    words = ["--steps", "49", "--warmup", "1", "--eval-every", "1", "--early-stop", "3"]
    assert run(tmp_path, *QUICK, *words) == 0
    assert [x["step"] for x in validations(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    said = capsys.readouterr().out
    assert "3 evaluations without a better loss" in said
    assert restore(tmp_path).path == checkpoint.best(tmp_path) == tmp_path / "step-4"
    records = read_steps(tmp_path / "log" / "rank0.jsonl")
    assert [x.measured for x in records] == [False] + [True] * 6
    shown = re.findall(r"^step +(\d+)/50 .* lr (\S+)", said, re.MULTILINE)
    assert shown == [(str(n), f"{x.learning_rate:.2e}") for n, x in enumerate(records, start=1)]
    found = iter([4.1, 4.0, 4.2])
    assert run(tmp_path, "--resume") == 0
    assert [x["step"] for x in validations(tmp_path)][7:] == [8, 9, 10], "none is better than before it went on"
    assert "the best is step-4: " in capsys.readouterr().out


def test_a_log_of_a_run_that_left_no_checkpoint_is_kept_apart(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "log", tmp_path / "log")
    shutil.copy(finished / "log" / "rank0.jsonl", tmp_path / "log" / "rank7.jsonl")
    shutil.copy(finished / "validation.jsonl", tmp_path / "validation.jsonl")
    (tmp_path / "log" / "rank0.jsonl").open("a").write('{"record": "st')  # killed while it wrote
    assert run(tmp_path, *QUICK, "--steps", "2", "--learning-rate", "1e-2") == 0
    assert list(losses(tmp_path)) == [0, 1]
    assert [x["step"] for x in validations(tmp_path)] == [2]
    assert (tmp_path / "log" / "rank7.jsonl").read_text() == ""
    aside = tmp_path / "log" / "set-aside"
    assert f"has steps from 0 on: they are kept in {aside}" in capsys.readouterr().out
    kept = [(aside / f"rank{rank}.jsonl").read_text().splitlines() for rank in (0, 7)]
    steps = [sum(line.startswith('{"record": "st') for line in lines) for lines in kept]
    assert steps == [11, 10], "ten steps, and the one that was cut off"
    assert (aside / "validation.jsonl").read_text() == (finished / "validation.jsonl").read_text()


def test_steps_of_a_branch_that_was_given_up_are_not_in_the_log(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    assert run(folder, "--resume", str(folder / "step-8"), *QUICK, "--steps", "9", "--eval-every", "5") == 0
    assert list(losses(folder)) == list(range(9))
    assert [x["step"] for x in validations(folder)] == [5, 9]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("log/rank0.jsonl", '{"record": "step", "step": "x"}\n', r"rank0\.jsonl line 1 is not a rec.*remove the line"),
        ("log/rank0.jsonl", "not JSON\n", r"rank0\.jsonl line 1 is not a rec.*remove the line"),
        ("runs.csv", "xx\n", r"runs\.csv has other columns .*: move it away .*: mv '.*/a run/runs\.csv' '.*before'"),
        ("runs.csv", None, r"runs\.csv cannot be written \(Is a directory\)"),
        ("validation.jsonl", None, r"validation\.jsonl cannot be written: move it away"),
    ],
)
def test_what_could_not_be_gone_on_with_is_told_before_the_first_step(
    file: str, content: str | None, message: str, finished: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "a run")
    path = folder / file
    path.unlink()
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(UsageError, match=message):
        run(folder, *QUICK, "--steps", "12", "--resume")
    assert checkpoint.latest(folder) == folder / "step-10"


def test_a_place_that_cannot_be_written_is_told_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(ConfigError, match=f"--out {out} cannot be written"):
            run(out, *QUICK)


def test_resuming_without_a_checkpoint_names_what_may_be_meant(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "alice")
    (tmp_path / "empty").mkdir()
    for words, message in [
        (["--out", "alise", "--resume"], r"alise does not exist \(did you mean .*/alice\?\).* leave --resume out"),
        (["--out", "empty", "--resume"], r"empty has no checkpoint \(did you mean .*/alice\?\)"),
        (["--out", "new", "--resume", "alise"], r"--resume .*alise: .* does not exist \(did you mean .*/alice"),
        (["--out", "new", "--resume", "alice/step-9"], r"there is no .*step-9, .*alice has step-8, step-10"),
    ]:
        words = [word if word.startswith("--") else str(tmp_path / word) for word in words]
        with pytest.raises(ConfigError, match=message):
            train.main([*QUICK, *words])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alice", "empty"]
    node = replace(PYTHON, launcher="torchrun", starts_again=True)  # what left no checkpoint yet
    train.check_resume(train.read([*QUICK, "--out", str(tmp_path / "new"), "--resume"], node), node)


def test_a_second_training_in_a_folder_is_refused(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        with pytest.raises(FolderInUseError, match=rf"is in use by the training of process {os.getpid()} on \S+ since"):
            run(tmp_path, *QUICK)
        with FolderLock(tmp_path / "other"):
            pass
    assert list(tmp_path.iterdir()) == [], "what a lock leaves"


@pytest.mark.parametrize(("words", "restarts"), [([], None), (["--resume"], 3)])
def test_a_start_that_fails_before_its_first_step_has_the_cost_of_its_own_run(
    words: list[str], restarts: int | None, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if words:
        shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
        (tmp_path / "runs.csv").unlink()
    moment = Moment.now()
    died = goodput.RunProgress(
        launch=None, began_at=moment.epoch_s, processes=1, first_step=0, step=9, at=moment, restarts=3, wall_s=70.0
    )
    (tmp_path / goodput.FILE).write_text(json.dumps(asdict(died)))

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("no engine")

    monkeypatch.setattr(loop.engines, "build", fail)
    with pytest.raises(RankError, match="no engine"):
        run(tmp_path, *QUICK, "--steps", "12", *words)
    (row,) = read(tmp_path / "runs.csv")
    assert (row.status, row.restarts, row.wall_s is None) == ("crash", restarts, restarts is None)


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        FolderLock(tmp_path).__enter__()
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "in-use.json").exists()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / "in-use.json").read_text())["process"] == os.getpid()


def test_a_launcher_that_starts_again_takes_over_from_a_start_that_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "_WAIT_S", 0.3)
    with FolderLock(tmp_path, launch="a"):
        with pytest.raises(FolderInUseError), FolderLock(tmp_path, starts_again=True, launch="b"):
            pass
        with FolderLock(tmp_path, starts_again=True, launch="a"):
            assert "which has ended" in capsys.readouterr().err
    monkeypatch.setattr(lock, "_WAIT_S", 60.0)  # on a busy machine a timer is late
    ended = FolderLock(tmp_path)
    ended.__enter__()
    threading.Timer(0.1, ended.__exit__).start()
    with FolderLock(tmp_path, starts_again=True):
        pass


def test_resuming_from_a_path(finished: Path, tmp_path: Path) -> None:
    words = [*QUICK, "--steps", "12", "--resume"]
    assert run(tmp_path / "b", *words, str(finished / "step-8")) == 0
    assert list(losses(tmp_path / "b")) == [8, 9, 10, 11]
    with pytest.raises(ConfigError, match="seed"):
        run(tmp_path / "c", *words, str(finished / "step-8"), "--seed", "1")


def test_a_run_goes_on_with_the_content_it_was_trained_on_under_any_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, moved = tmp_path / "text.txt", tmp_path / "moved.txt"
    text.write_text("all work and no play\n" * 200)
    words = [*QUICK, "--steps", "1", "--data", f"file:{text}"]
    assert run(tmp_path / "run", *words) == 0
    shutil.copy(text, moved)
    text.write_text("all play and no work\n" * 200)
    with pytest.raises(ConfigError, match=rf"was trained on file:{text} .* has changed since: give --data what it was"):
        run(tmp_path / "run", "--resume", "--steps", "2")
    assert run(tmp_path / "run", "--resume", "--steps", "2", "--data", f"file:{moved}") == 0
    capsys.readouterr()
    assert run(tmp_path / "run", "--resume", "--steps", "1", "--data", f"file:{moved}") == 0
    assert "at step 2: nothing is left to train, give a --steps above 2" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"alice \(sha256 502852fbc455\) is other data"):
        run(tmp_path / "other", *QUICK, "--resume", str(tmp_path / "run" / "step-2"), "--data", "alice")


def test_a_classifier_tells_its_accuracy_and_a_trace_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "resnet", "--size", "tiny", "--steps", "2", "--eval-samples", "30", "--profile-step", "1"]
    words += ["--global-batch-size", "8"]
    assert run(tmp_path, *words) == 0
    (found,) = validations(tmp_path)
    assert found["bits_per_byte"] is None
    assert 0 <= found["accuracy"] <= 1 and round(found["accuracy"] * 30, 6).is_integer()
    assert f"accuracy {found['accuracy']:.2%}" in capsys.readouterr().out
    assert json.loads((tmp_path / "trace-step-1.json").read_text())["traceEvents"]


def test_a_model_of_twelve_classes_goes_on_and_is_restored_without_its_data(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for i in range(12):
        (data / f"{i:02}").mkdir(parents=True)
        Image.new("L", (8, 8), 20 * i).save(data / f"{i:02}" / "0.png")
    words = ["--model", "resnet", "--size", "tiny", "--data", f"file:{data}", "--global-batch-size", "4"]
    assert run(tmp_path / "out", *words, "--steps", "1") == 0
    assert run(tmp_path / "out", "--steps", "2", "--resume") == 0
    shutil.rmtree(data)
    trained = restore(tmp_path / "out")
    assert vars(trained.work.model_config)["n_classes"] == 12
    assert dict(trained.model.named_parameters())["head.linear.weight"].shape[0] == 12


def test_a_peak_that_was_measured_on_a_busy_machine_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = [Peak(1.0, "measured: too late"), Peak(1e15, "measured: again"), Peak(1.0, "measured: busy")]
    monkeypatch.setattr(roofline, "_measured", {})
    monkeypatch.setattr(roofline, "_measure", lambda *args, **kwargs: measured.pop())
    assert run(tmp_path, *QUICK, "--steps", "4", "--log-every", "1") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "MFU" in line]
    assert len(lines) == 4 and all("MFU 0.0%" in line for line in lines) and len(measured) == 1


def test_a_run_that_stays_faster_than_the_peak_has_no_utilisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = [Peak(1.0, "measured: busy")] * 5
    monkeypatch.setattr(roofline, "_measured", {})
    monkeypatch.setattr(roofline, "_measure", lambda *args, **kwargs: measured.pop())
    assert run(tmp_path, *QUICK, "--steps", "4", "--log-every", "1") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "MFU" in line]
    assert len(lines) == 4 and all("MFU unknown" in line for line in lines) and len(measured) == 3


def test_a_line_of_metrics() -> None:
    metrics = screen.Metrics(
        step=20,
        loss=4.5,
        grad_norm=0.25,
        learning_rate=1e-3,
        units_per_s=12_345.6,
        unit="tokens",
        mfu=0.123,
        memory_bytes=3 << 20,
        data_wait_share=0.004,
    )
    assert metrics.line(1000) == (
        "step   20/1000  loss 4.5000  grad norm 0.250  lr 1.00e-03  12,346 tokens/s  MFU 12.3%  3 MiB  data wait 0.4%"
    )


@pytest.mark.parametrize("name", train.PRESETS)
def test_every_preset_resolves(name: str) -> None:
    work = resolve(train.read(["--preset", name], PYTHON))
    assert work.division.global_batch_size == train.PRESETS[name]["global_batch_size"]


def test_flags_go_over_a_file_which_goes_over_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("steps = 7\nlearning_rate = 0.5\n")
    config = train.read(["--preset", "mnist", "--config", str(file), "--steps", "9"], PYTHON)
    assert (config.model, config.learning_rate, config.steps) == ("resnet", 0.5, 9)
    assert config.out == "runs/resnet-20"


def resumed(finished: Path, *words: str, rank: Rank = PYTHON) -> tuple[str, int]:
    work = resolve(train.read(["--resume", "--out", str(finished), *words], rank))
    assert work.division.global_batch_size == 8
    return str(work.layout), work.run.steps


def test_a_run_goes_on_as_it_was_but_for_what_is_asked(finished: Path) -> None:
    assert resumed(finished) == ("dp1", 10)
    assert resumed(finished, "--steps", "30") == ("dp1", 30)
    assert resumed(finished, "--nproc", "2") == ("dp2", 10)
    assert resumed(finished, "--layout", "tp2", "--steps", "30") == ("tp2", 30)


@pytest.mark.parametrize(
    "words", [["--nproc", "3"], ["--nproc", "3", "--strategy", "pipeline"], ["--layout", "dp2.pp2/1f1b/mb8"]], ids=str
)
def test_a_run_that_goes_on_is_told_of_layouts_that_divide_its_batch(finished: Path, words: list[str]) -> None:
    with pytest.raises(LayoutError, match=r"global batch 8, which stays .*: use ") as caught:
        resumed(finished, *words)
    advice = str(caught.value).split(": use ")[1].split()
    assert resumed(finished, *words, *advice)[0] == advice[-1]


def test_a_run_whose_configuration_was_not_copied_goes_on_by_that_of_its_checkpoint(
    finished: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(finished, tmp_path / "moved")
    asked = resolve(train.read(["--resume", "--out", str(moved), "--nproc", "2"], PYTHON)).run
    (moved / "config.toml").unlink()
    assert resolve(train.read(["--resume", "--out", str(moved), "--nproc", "2"], PYTHON)).run == asked


def test_under_a_launcher_the_number_of_processes_is_its(finished: Path) -> None:
    two = Rank(0, 2, 0, 2, "torchrun")
    assert resumed(finished, rank=two) == ("dp2", 10)
    assert resumed(finished, "--strategy", "zero3", rank=two) == ("dp2/zero3", 10)
    assert train.read(["--strategy", "tensor"], two).nproc == 2
    assert resumed(finished, rank=Rank(0, 1, 0, 1, "torchrun")) == ("dp1", 10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "alise"], "did you mean alice"),
        (["--sav-every", "3"], "did you mean --save-every"),
        (["--engine", "accelerate", "--nproc", "2"], "the states of Accelerate cannot be saved"),
        (["--engine", "deepspeed", "--layout", "pp2/mb4"], "the states of DeepSpeed's pipelines cannot be saved"),
        (["--keep-last", "0"], "at least 1"),
        (["--data", "file:caf\udce9.txt"], "--data 'file:caf.udce9.txt' has bytes that are no UTF-8"),
    ],
)
def test_bad_options_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, *QUICK, *words)


def adapted(nodes: int, *words: str) -> str:
    rank = Rank(0, nodes, 0, 1, "torchrun", launch="a", elastic=True)
    return str(resolve(train.read([*QUICK, *words], rank)).layout)


@pytest.mark.parametrize(
    ("words", "layouts"),
    [
        ((), ["dp1", "dp2", "dp2", "dp4"]),  # 8 samples do not divide by 3: one process stands by
        (("--strategy", "zero3"), ["dp1/zero3", "dp2/zero3", "dp2/zero3", "dp4/zero3"]),
        (("--layout", "dp8.tp2/zero1"), [None, "tp2", "tp2", "dp2.tp2/zero1"]),
        (("--layout", "dp8/zero3/shard2"), ["dp1/zero3", "dp2/zero3", "dp2/zero3", "dp4/zero3/shard2"]),
        (("--global-batch-size", "12"), ["dp1", "dp2", "dp3", "dp4"]),
        (("--accumulation", "4"), ["dp1", "dp2", "dp2", "dp2"]),
    ],
)
def test_the_data_axis_follows_the_number_of_processes(words: tuple[str, ...], layouts: list[str | None]) -> None:
    for nodes, layout in enumerate(layouts, start=1):
        if layout is None:
            with pytest.raises(LayoutError, match="needed for one data rank"):
                adapted(nodes, *words)
        else:
            assert adapted(nodes, *words) == layout


def test_a_strategy_without_a_data_axis_needs_a_layout_to_follow_the_processes() -> None:
    with pytest.raises(ConfigError, match="its data axis is not known"):
        adapted(3, "--strategy", "tensor")
