"""GPT-2 checkpoints of Hugging Face, read from a folder or the hub and written to a folder (safetensors)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from models.gpt2 import GPT2Config
from models.gpt2_hf import config_from, placed, take, to_transformers
from parallel.errors import DataError

_NEEDED = "use gpt2, gpt2-medium, gpt2-large, gpt2-xl or a model of that form"
_INDEX = "model.safetensors.index.json"  # of a checkpoint in several files


def from_hugging_face(folder_or_name: str | Path, *, trust: bool = False) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Read a checkpoint such as `gpt2`, or a folder of one; return the config and the state by canonical names.

    Every tensor in its files has a place in the state, or the checkpoint is refused. Python files are never run.
    trust: take a folder that brings Python of its own for the plain GPT-2 that its config.json says it is.
    Raises: DataError when it cannot be read, is damaged or is not this GPT-2.
    """
    folder = _folder(folder_or_name)
    config = read_config(folder, trust=trust)
    try:
        return config, take(_tensors(folder), config)
    except ValueError as error:
        raise DataError(f"{folder} is not a GPT-2 that can be used here ({error}): {_NEEDED}") from error


def check(folder: Path, *, trust: bool = False) -> GPT2Config:
    """Return the config of a folder whose tensors all have a place. trust, raises: as in `from_hugging_face`."""
    config = read_config(folder, trust=trust)
    try:
        placed(_tensors(folder), config)
    except ValueError as error:
        raise DataError(f"{folder} is not a GPT-2 that can be used here ({error}): {_NEEDED}") from error
    return config


def read_config(folder: Path, *, trust: bool = False) -> GPT2Config:
    """Return the config of a folder. trust, raises: as in `from_hugging_face`."""
    from transformers import GPT2Config as TheirConfig

    values = _json(folder / "config.json", folder)
    try:
        if values.get("model_type") != "gpt2":
            raise ValueError(f"its model_type is {values.get('model_type')!r}")
        _refuse_what_changes_it(folder, values, trust=trust)
        return config_from(TheirConfig.from_dict(values))
    except (ValueError, TypeError) as error:
        raise DataError(f"{folder} is not a GPT-2 that can be used here ({_line(error)}): {_NEEDED}") from error


def _refuse_what_changes_it(folder: Path, values: Mapping[str, Any], *, trust: bool) -> None:
    """Raise DataError for what lies in a folder and makes another model of it."""
    if adapter := next((path.name for path in sorted(folder.glob("adapter_*"))), None):
        raise DataError(
            f"{folder} has an adapter ({adapter}), which would not be read: merge it first, "
            "model.merge_and_unload().save_pretrained(FOLDER) in peft, and give that folder"
        )
    if "auto_map" in values and not trust:
        raise DataError(
            f"{folder} brings Python of its own (auto_map in config.json), which may compute something else and is "
            "never run here: add --trust to read its weights as those of a plain GPT-2, or give a folder without it"
        )


def to_hugging_face(folder: str | Path, config: GPT2Config, state: Mapping[str, Tensor]) -> None:
    """Write a checkpoint that `GPT2LMHeadModel.from_pretrained(folder)` reads. `state` holds full parameters."""
    to_transformers(config, state).save_pretrained(folder)


def _folder(folder_or_name: str | Path) -> Path:
    """Return the folder itself, or the copy of a checkpoint that has been fetched from the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name = str(folder_or_name)
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, LocalEntryNotFoundError, HFValidationError) as error:
        local = Path(name).name
        raise DataError(
            f"{name!r} is not a folder here and cannot be fetched from the hub ({_line(error)}): where there is a "
            f"network type `hf download {name} --local-dir {local}`, and give the folder {local}"
        ) from error


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of the files of a folder, on the CPU, by its name there."""
    from safetensors.torch import load_file

    names = ["model.safetensors"]
    if (folder / _INDEX).is_file():
        placed = _json(folder / _INDEX, folder).get("weight_map")
        names = sorted(set(placed.values())) if isinstance(placed, dict) else []
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            tensors |= load_file(folder / Path(name).name)
        except (OSError, SafetensorError) as error:
            raise _unreadable(folder, f"{name}: {_line(error)}") from error
    return tensors


def _json(file: Path, folder: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(folder, f"{file.name}: {_line(error)}") from error
    if not isinstance(values, dict):
        raise _unreadable(folder, f"{file.name} holds a {type(values).__name__}")
    return values


def _unreadable(folder: Path, why: str) -> DataError:
    return DataError(f"checkpoint {folder} cannot be read ({why}): use a folder with config.json and model.safetensors")


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
