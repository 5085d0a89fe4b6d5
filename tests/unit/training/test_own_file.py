"""Checkpoints of a model in a file of the user's own: the file is found again, moved, or has changed since."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from paralab import checkpoint
from paralab.cli import main
from paralab.errors import ConfigError, DataError
from paralab.inference.restore import restore
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from tests.unit.commands.test_check_model import MODEL

Run = Callable[..., int]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that trains the model of net.py in the working directory, on this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("net.py").write_text(MODEL)

    def run(*words: str) -> int:
        return main(["train", "--strategy", "single", "--global-batch-size", "2", "--eval-samples", "2", *words])

    return run


def test_its_file_is_found_again_and_where_it_has_moved_it_can_be_given(
    train: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--model", "net.py", "--steps", "1") == 0
    run = Path("runs/net").absolute()
    monkeypatch.chdir("/")
    assert restore(run).work.spec.name == "net"

    Path(run.parents[1] / "net.py").rename(run.parents[1] / "moved.py")
    with pytest.raises(DataError, match=r"there is no file .*/net.py: give the path of one, as --model FILE.py:NAME"):
        restore(run)
    capsys.readouterr()
    assert main(["generate", "--checkpoint", str(run), "--prompt", "a", "--tokens", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    moved = f"{run.parents[1]}/moved.py"
    assert main(["generate", "--checkpoint", str(run), "--prompt", "a", "--tokens", "1", "--model", moved]) == 0
    monkeypatch.chdir(run.parents[1])
    assert train("--model", "moved.py", "--steps", "2", "--resume", "--out", "runs/net") == 0


def test_a_changed_file_goes_on_where_tensors_are_the_same_and_is_refused_where_not(
    train: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--model", "net.py", "--steps", "1") == 0
    Path("net.py").write_text(MODEL + "\n# a remark\n")
    assert train("--model", "net.py", "--steps", "2", "--resume") == 0
    Path("net.py").write_text(MODEL.replace("4 * width", "3 * width"))
    with pytest.raises(ConfigError) as raised:
        checkpoint.check_same_work(
            "runs/net", resolve(RunConfig(model="net.py", strategy="single", global_batch_size=2))
        )
    said = str(raised.value)
    assert "blocks.0.up.weight is (32, 8) there and (24, 8) in net, whose file has changed since" in said
    capsys.readouterr()
    assert train("--model", "net.py", "--steps", "3", "--resume") == 2
    assert said in capsys.readouterr().err


def test_what_works_block_by_block_is_refused_without_blocks(train: Run) -> None:
    Path("net.py").write_text(MODEL.replace("n_blocks=lambda config: config.blocks", "block_names=lambda config: ()"))
    for words in (RunConfig(checkpointing="full"), RunConfig(compile="default")):
        with pytest.raises(ConfigError, match="works block by block, and net has no blocks"):
            resolve(replace(words, model="net.py", strategy="single"))
    resolve(RunConfig(model="net.py", strategy="single"))
