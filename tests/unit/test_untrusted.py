"""A pickle, which runs what its author likes when it is read, in the place of every file that is read here."""

import contextlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import GPT2Config as GPT2HF

from paralab.commands.sample import _read_points
from paralab.data import open_dataset
from paralab.engines import deepspeed_config
from paralab.errors import ParalabError
from paralab.models.gpt2 import GPT2Config
from paralab.models.resnet import ResNetConfig
from paralab.options import files
from paralab.records.log import read_log
from paralab.records.reading import read
from paralab.weights.hugging_face import from_hugging_face


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def as_yaml(payload: Payload) -> bytes:
    return f"steps: !!python/object/apply:os.mkdir ['{payload.marker}']\n".encode()


def as_array(payload: Payload, folder: Path) -> bytes:
    np.save(folder / "array.npy", np.array([payload], dtype=object), allow_pickle=True)
    return (folder / "array.npy").read_bytes()


def as_torch(payload: Payload, folder: Path) -> bytes:
    torch.save({"transformer.wte.weight": payload}, folder / "torch.bin")
    return (folder / "torch.bin").read_bytes()


TEXT = GPT2Config(seq_len=8, hidden=16, n_layers=1, n_heads=2)
IMAGES = ResNetConfig(depths=(1,), widths=(8,))
READERS: dict[str, Callable[[Path], object]] = {
    "settings.yaml": files.load,
    "settings.toml": files.load,
    "settings.json": files.load,
    "ds.json": deepspeed_config.read,
    "rows.csv": read,
    "run.rank0.jsonl": read_log,
    "points.npy": lambda file: _read_points(file, dims=2),
    "points.csv": lambda file: _read_points(file, dims=2),
    "text.txt": lambda file: open_dataset(str(file), config=TEXT, split="train"),
    "text.parquet": lambda file: open_dataset(str(file), config=TEXT, split="train"),
    "train-images-idx3-ubyte": lambda file: open_dataset(str(file.parent), config=IMAGES, split="train"),
    "pytorch_model.bin": lambda file: from_hugging_face(file.parent),
    "model.safetensors": lambda file: from_hugging_face(file.parent),
}


def payloads(marker: Path, folder: Path) -> list[bytes]:
    """Return what runs code in one reader or another; each is tried to be sure of it."""
    made = [pickle.dumps(Payload(marker)), as_yaml(Payload(marker))]
    made += [as_array(Payload(marker), folder), as_torch(Payload(marker), folder)]
    tries: list[Callable[[], object]] = [
        lambda: pickle.loads(made[0]),
        lambda: yaml.unsafe_load(made[1]),
        lambda: np.load(folder / "array.npy", allow_pickle=True),
        lambda: torch.load(folder / "torch.bin", weights_only=False),
    ]
    for attempt in tries:
        attempt()
        marker.rmdir()
    return made


@pytest.mark.filterwarnings("ignore:.*the last line is not finished")  # as in payloads without an end of line
@pytest.mark.parametrize("name", READERS)
def test_nothing_that_is_read_can_run_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARALAB_CACHE", str(tmp_path / "cache"))
    marker, scratch = tmp_path / "ran", tmp_path / "scratch"
    scratch.mkdir()
    for number, payload in enumerate(payloads(marker, scratch)):
        folder = tmp_path / str(number)
        folder.mkdir()
        if name.endswith((".bin", ".safetensors")):
            GPT2HF(n_layer=1, n_head=1, n_embd=4, vocab_size=8).save_pretrained(folder)
        (folder / name).write_bytes(payload)
        with contextlib.suppress(ParalabError):  # text is allowed to look like anything
            READERS[name](folder / name)
        assert not marker.exists()
