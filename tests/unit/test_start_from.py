"""What was trained here goes out to other programs, and training starts from what comes in."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from parallel import cli, train
from parallel.checkpoint.restore import restore
from parallel.errors import ConfigError
from parallel.measure.record import read_log
from parallel.weights.hugging_face import from_hugging_face

QUICK = ["--model", "gpt2", "--size", "tiny", "--global-batch-size", "8", "--eval-samples", "8", "--eval-every", "3"]


def losses(folder: Path, *words: str) -> list[float]:
    assert train.main([*QUICK, "--out", str(folder), *words]) == 0
    return [record.loss for record in read_log(folder / "log" / "rank0.jsonl")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    folder = tmp_path_factory.mktemp("trained")
    losses(folder, "--steps", "3", "--learning-rate", "0.01")
    return folder


def export(run: Path, target: Path, form: str) -> Path:
    assert cli.main(["export", str(run), str(target), "--format", form]) == 0
    return target


def test_transformers_computes_the_same_logits(trained: Path, tmp_path: Path) -> None:
    theirs = GPT2LMHeadModel.from_pretrained(export(trained, tmp_path / "hf", "hf"))
    ours = restore(trained)
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        vocabulary = ours.work.model_config.vocab_size
        torch.testing.assert_close(theirs(tokens).logits, ours.model(tokens)[..., :vocabulary], atol=1e-5, rtol=0)


def test_training_starts_where_the_weights_were(trained: Path, tmp_path: Path) -> None:
    fresh = losses(tmp_path / "fresh", "--steps", "1")
    sources = [
        export(trained, tmp_path / "hf", "hf"),
        export(trained, tmp_path / "weights", "safetensors"),
        trained / "step-3",
    ]
    started = [losses(tmp_path / f"from-{path.name}", "--steps", "1", "--init-from", str(path)) for path in sources]
    assert started[1] == started[2] == pytest.approx(started[0], rel=1e-6)
    assert started[0][0] < 0.99 * fresh[0]


def test_a_run_that_goes_on_keeps_its_own_weights(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = losses(out, "--steps", "2", "--init-from", str(trained / "step-3"), "--lr-schedule", "constant")
    whole = losses(
        tmp_path / "whole", "--steps", "3", "--init-from", str(trained / "step-3"), "--lr-schedule", "constant"
    )
    assert losses(out, "--resume", "--steps", "3") == pytest.approx([*first, whole[2]], rel=1e-6)


def test_shorter_windows_use_the_first_positions(trained: Path, tmp_path: Path) -> None:
    folder = export(trained, tmp_path / "hf", "hf")
    config, _ = from_hugging_face(folder)
    assert losses(tmp_path / "a", "--steps", "1", "--init-from", str(folder), "--seq-len", str(config.seq_len // 2))


def test_what_cannot_be_used_is_said(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(trained, tmp_path / "hf", "hf")
    assert cli.main(["export", str(trained), str(folder)]) == 2
    assert "give a new folder" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"no config\.json"):
        losses(tmp_path / "a", "--init-from", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"n_layers 8.*use the --size"):
        losses(tmp_path / "b", "--init-from", str(folder), "--size", "nano")
