"""Metrics of a run go where `--log-to` says; what is not installed is asked for by name."""

import errno
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from paralab.commands import train
from paralab.errors import ConfigError, WriteError
from paralab.records.layers import by_layer
from paralab.records.log import read_layers
from paralab.training import sinks

QUICK = ["--model", "gpt2", "--size", "tiny", "--global-batch-size", "8", "--eval-samples", "8"]
QUICK += ["--steps", "4", "--log-every", "2", "--eval-every", "4"]


class Recorded(ModuleType):
    """A stand-in for the module trackio."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.__spec__ = ModuleSpec("trackio", None)
        self.begun: dict = {}
        self.logged: list[tuple[int, dict]] = []
        self.finished = 0

    def init(self, **options: object) -> "Recorded":
        self.begun = options
        return self

    def log(self, values: dict, *, step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_a_run_in_trackio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trackio = Recorded()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    folder = tmp_path / "my-run"
    words = [*QUICK, "--out", str(folder), "--log-to", "trackio", "--layer-stats-every", "2"]
    assert train.main(words) == 0
    assert (trackio.begun["project"], trackio.begun["name"], trackio.finished) == ("paralab", "my-run", 1)
    assert trackio.begun["config"]["global_batch_size"] == 8
    assert [step for step, values in trackio.logged if "train/loss" in values] == [2, 4]
    assert [step for step, values in trackio.logged if "validation/loss" in values] == [4]
    of_layers = [(step, values) for step, values in trackio.logged if "layers/blocks.0/update_rms" in values]
    assert [step for step, _ in of_layers] == [1, 3]
    first = by_layer(read_layers(folder / "log" / "rank0.jsonl"))[0]
    assert of_layers[0][1] == {
        f"layers/{name}/{kind}": value
        for name, rms in first.items()
        for kind, value in zip(("weight_rms", "gradient_rms", "update_rms"), rms, strict=True)
    }
    assert all(isinstance(value, (int, float)) for _, values in trackio.logged for value in values.values())


def test_what_cannot_be_logged_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = SimpleNamespace(add_scalar=full, close=full)
    module = SimpleNamespace(SummaryWriter=lambda folder: writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    before, said = threading.excepthook, list[Any]()
    monkeypatch.setattr(threading, "excepthook", said.append)
    board = sinks.TensorBoard(tmp_path, {})
    for thread, error in (("tensorboard.summary", OSError()), ("a.module", ValueError())):
        ended = SimpleNamespace(thread=type("Thread", (), {"__module__": thread})(), exc_value=error)
        threading.excepthook(ended)  # type: ignore[arg-type]
    assert [ended.exc_value for ended in said] == [error]
    for wanted in (lambda: board.write("train", 1, {"loss": 1.0}), board.close):
        with pytest.raises(WriteError, match=f"{tmp_path}/tensorboard cannot be written .No space .*leave --log-to"):
            wanted()
    assert threading.excepthook == said.append != before


def test_a_run_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train.main([*QUICK, "--out", str(tmp_path), "--log-to", "tensorboard"]) == 0
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4]
    assert [event.step for event in events.Scalars("validation/loss")] == [4]


def test_what_is_unknown_or_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--log-to tensorbord is unknown \(did you mean tensorboard"):
        train.main([*QUICK, "--log-to", "trackio,tensorbord"])
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'paralab\[trackio\]'"):
        sinks.check(["trackio"])
