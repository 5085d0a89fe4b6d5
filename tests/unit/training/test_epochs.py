"""Epochs of `paralab train`: how many steps they are, where checkpoints of them are kept, and how a run goes on."""

import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from paralab.commands import train
from paralab.data.dataset import Batch
from paralab.data.order import SampleOrder
from paralab.engines.engine import StepResult
from paralab.engines.native import NativeEngine
from paralab.errors import ConfigError
from paralab.options.files import load
from paralab.planning.resolve import resolve
from paralab.processes.rank import Rank
from paralab.records.reading import read
from paralab.training import epochs

PYTHON = Rank(0, 1, 0, 1, "python")
# 25 samples of 16 tokens in steps of 8: epochs 1, 2 and 3 are over after steps 4, 7 and 10
QUICK = "--model gpt2 --size tiny --max-tokens 401 --global-batch-size 8 --threads 1 --eval-samples 4".split()
QUICK += ["--lr-schedule", "constant"]  # which does not depend on the number of steps


def settled(*words: str) -> epochs.TrainConfig:
    config = train.read([*words], PYTHON)
    run = epochs.with_steps(resolve(config), steps_given="--steps" in words).run
    assert isinstance(run, epochs.TrainConfig)
    return run


def steps_in(folder: Path) -> list[str]:
    return sorted((path.name for path in folder.glob("step-*")), key=lambda name: int(name[5:]))


def tensors_in(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in checkpoint.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    ("words", "batch"),
    [
        (QUICK, 8),
        (("--model", "resnet", "--size", "tiny"), 64),
        (("--model", "diffusion", "--size", "tiny-points"), 512),
        (("--model", "diffusion", "--size", "tiny-dit"), 64),
        (("--model", "vicreg", "--size", "tiny", "--global-batch-size", "48"), 48),
        (("--model", "resnet", "--size", "tiny", "--held-out-class", "3"), 64),
    ],
)
def test_each_sample_is_taken_as_often_as_there_are_epochs(words: tuple[str, ...], batch: int) -> None:
    samples = resolve(train.read([*words], PYTHON)).dataset().n_samples
    steps = settled(*words, "--epochs", "2").steps
    order = SampleOrder(samples, seed=0)
    taken = Counter(order.at(np.arange(steps * batch)).tolist())
    assert len(taken) == samples and min(taken.values()) == 2
    before = Counter(order.at(np.arange((steps - 1) * batch)).tolist())
    assert min(before.get(sample, 0) for sample in range(samples)) == 1, "one step less would not have been enough"


def test_warm_up_counts_and_what_is_requested_twice_has_to_agree() -> None:
    assert settled(*QUICK, "--epochs", "3").steps == 10
    assert settled(*QUICK, "--epochs", "3", "--warmup", "2").steps == 8
    assert settled(*QUICK, "--epochs", "3", "--steps", "10").steps == 10
    assert settled("--preset", "alice", *QUICK, "--epochs", "3").steps == 10, "the preset's 300 are no request"
    assert settled("--preset", "alice", *QUICK, "--epochs", "none").steps == 300
    both = "--steps 9 with --epochs 3: 3 epochs of 25 samples are 10 steps of 8, use --steps 10 or leave one out"
    with pytest.raises(ConfigError, match=both):
        settled(*QUICK, "--epochs", "3", "--steps", "9")
    with pytest.raises(ConfigError, match=r"--epochs 1000000000000 is too many: .* are 3,125,000,000,000 steps of 8"):
        settled(*QUICK, "--epochs", str(10**12))
    with pytest.raises(ConfigError, match="use --warmup 0"):
        settled(*QUICK, "--epochs", "1", "--warmup", "4")


def test_a_checkpoint_beyond_the_run_is_refused() -> None:
    assert epochs.saved_at(resolve(settled(*QUICK, "--epochs", "3", "--save-at-epochs", "3,1"))) == {4: 1, 10: 3}
    with pytest.raises(ConfigError, match=r"--save-at-epochs 4 in a run of 10 steps, 3.2 epochs .* 3 or earlier"):
        settled(*QUICK, "--epochs", "3", "--save-at-epochs", "1,4")
    with pytest.raises(ConfigError, match=r"0.64 epochs of 25 samples: leave it out, or --epochs 1"):
        settled(*QUICK, "--steps", "2", "--save-at-epochs", "1")
    local = [*QUICK, "--layout", "dp2/local4", "--save-every", "4", "--eval-every", "4", "--epochs", "3"]
    work = resolve(settled(*local[:-2], "--steps", "12", "--save-at-epochs", "2"))
    with pytest.raises(ConfigError, match="epoch 2 is over after step 7, between its meetings"):
        train.check(work)
    with pytest.raises(ConfigError, match="use --steps 12 in place of --epochs 3"):
        train.check(resolve(settled(*local)))


def test_a_run_stopped_by_a_signal_goes_on_to_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*QUICK, "--epochs", "3", "--save-at-epochs", "1,2", "--save-every", "2", "--keep-last", "1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train.main([*words, "--out", str(whole)]) == 0
    printed, on_terminal = capsys.readouterr()
    assert "epochs: 3" in on_terminal.splitlines()[0]
    assert "from step 0 to 10: 3 epochs of 25 samples" in printed
    assert steps_in(whole) == ["step-4", "step-7", "step-10"]
    (row,) = read(whole / "runs.csv")
    assert (row.epochs_requested, row.epochs) == (3, 10 * 8 / 25)
    assert (load(whole / "config.toml")["steps"], load(whole / "config.toml")["epochs"]) == (10, 3)

    take = NativeEngine.step

    def step_and_signal(engine: NativeEngine, batch: Batch) -> StepResult:
        if engine.steps_done == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(engine, batch)

    with monkeypatch.context() as patch:
        patch.setattr(NativeEngine, "step", step_and_signal)
        assert train.main([*words, "--out", str(stopped)]) == 128 + signal.SIGTERM
    assert steps_in(stopped) == ["step-4", "step-6"]
    assert train.main(["--resume", "--out", str(stopped)]) == 0
    assert steps_in(stopped) == ["step-4", "step-7", "step-10"]
    for step in steps_in(whole):
        got, want = (tensors_in(folder / step) for folder in (stopped, whole))
        assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)

    capsys.readouterr()  # longer, in steps this time, and with an epoch that is over already
    assert train.main(["--resume", "--out", str(stopped), "--steps", "12", "--save-at-epochs", "3"]) == 0
    assert "no checkpoint is kept" not in capsys.readouterr().out, "step-10 is there"
    assert load(stopped / "config.toml").get("epochs") is None
    assert steps_in(stopped) == ["step-10", "step-12"]
    assert train.main(["--resume", "--out", str(stopped), "--epochs", "4", "--save-at-epochs", "2,4"]) == 0
    assert "epoch 2 was over before this start: of it no checkpoint is kept" in capsys.readouterr().out
    assert load(stopped / "config.toml")["steps"] == 13
    assert steps_in(stopped)[-1] == "step-13"
