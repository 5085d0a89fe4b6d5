"""Checkpoints of Hugging Face, read from a folder or the hub and written to a folder (safetensors).

Which model a folder is for, its config.json says: the one whose converter has that model_type (models/converter.py).
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from paralab.errors import DataError
from paralab.models import HUGGING_FACE, SPECS
from paralab.models.configs import C, ModelConfig, TextConfig
from paralab.models.converter import Converter
from paralab.models.hugging_face.config import quietly
from paralab.models.spec import ModelSpec
from paralab.weights import tensor_files
from paralab.weights.tokenizer_files import differs_from

_SAFETENSORS, _PICKLE = "model.safetensors", "pytorch_model.bin"
_INDEX = ".index.json"  # behind a name: of a checkpoint in several files


def from_hugging_face(folder_or_name: str | Path, *, trust: bool = False) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read a checkpoint such as `gpt2`, or a folder of one; return the config and the state.

    The state has the parameters by canonical names, in fp32 and of the whole shapes that the model has. Every tensor in
    its files has a place there, or the checkpoint is refused. Python files are never run.
    trust: take a folder that brings Python of its own for the plain model that its config.json says it is.
    Raises: DataError when it cannot be read, is damaged or is none of our models.
    """
    folder = _folder(folder_or_name)
    spec, config = read_config(folder, trust=trust)
    try:
        return config, converter_of(spec).take(_tensors(folder, trust=trust), config)
    except ValueError as error:
        raise _another(folder, spec, error) from error


def check(folder: Path, *, trust: bool = False) -> tuple[ModelSpec, ModelConfig]:
    """Return model and config of a folder whose tensors all have a place. trust: as in `from_hugging_face`.

    Raises: DataError when it cannot be read, is damaged or is none of our models.
    """
    spec, config = read_config(folder, trust=trust)
    try:
        converter_of(spec).placed(_tensors(folder, trust=trust), config)
    except ValueError as error:
        raise _another(folder, spec, error) from error
    return spec, config


def read_config(folder: Path, *, trust: bool = False) -> tuple[ModelSpec, ModelConfig]:
    """Return model and config of a folder. trust: as in `from_hugging_face`.

    Raises: DataError when it cannot be read or is that of no model of ours.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    values = _json(folder / "config.json", folder)
    spec = _spec_of(values.get("model_type"), folder)
    try:
        _refuse_what_changes_it(folder, values, spec, trust=trust)
        config = converter_of(spec).config_from(CONFIG_MAPPING[values["model_type"]].from_dict(values))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise _another(folder, spec, error) from error
    if isinstance(config, TextConfig):
        _check_encoding(folder, config.tokenizer)
    return spec, config


def convertible() -> dict[str, ModelSpec]:
    """Return the models that have a converter, by the model_type of Hugging Face."""
    return {converter_of(spec).MODEL_TYPE: spec for spec in SPECS.values() if spec.hugging_face is not None}


def converter_of(spec: ModelSpec[C]) -> Converter[C]:
    """Return the converter of a model that has one."""
    assert spec.hugging_face is not None, spec.name
    return spec.hugging_face()


def _spec_of(model_type: object, folder: Path) -> ModelSpec:
    known = convertible()
    if model_type not in known:
        raise DataError(
            f"{folder} has no model that can be used here (its model_type is {model_type!r}): give one of type "
            f"{' or '.join(known)}, or train it as it is in transformers with --model {HUGGING_FACE}{folder}"
        )
    return known[str(model_type)]


def _another(folder: Path, spec: ModelSpec[C], error: Exception) -> DataError:
    """Return the error of a folder that is not quite the model that it says it is."""
    why = " ".join(str(error).split())
    theirs = f"train it as it is in transformers with --model {HUGGING_FACE}{folder}"
    return DataError(f"{folder} is not a {spec.name} that can be used here ({why}): give a plain one, or {theirs}")


def _check_encoding(folder: Path, name: str) -> None:
    """Raise DataError where the folder has an encoding of its own: its numbers of tokens would be taken for ours."""
    try:
        file = differs_from(name, folder)
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(folder, f"its tokenizer: {_line(error)}") from error
    if file:
        ours = "bytes, as its vocabulary of 257 says" if name == "bytes" else "GPT-2's"
        raise DataError(
            f"{folder} has an encoding of its own ({file} is not {ours}), with which texts are not read here: give a "
            f"model with GPT-2's encoding, or remove {file} if it is not the one that the model was trained with"
        )


def _refuse_what_changes_it(folder: Path, values: Mapping[str, Any], spec: ModelSpec[C], *, trust: bool) -> None:
    """Raise DataError for what lies in a folder and makes another model of it."""
    if adapter := next((path.name for path in sorted(folder.glob("adapter_*"))), None):
        raise DataError(
            f"{folder} has an adapter ({adapter}), which would not be read: merge it first, "
            "model.merge_and_unload().save_pretrained(FOLDER) in peft, and give that folder"
        )
    if values.get("quantization_config"):
        raise DataError(
            f"{folder} is quantized (quantization_config in config.json), and training starts from whole weights: "
            "give the model that it was made from"
        )
    if "auto_map" in values and not trust:
        raise DataError(
            f"{folder} brings Python of its own (auto_map in config.json), which may compute something else and is "
            f"never run here: add --trust to read its weights as those of a plain {spec.name}, or give a folder without"
        )


def to_hugging_face(
    folder: str | Path,
    state: Mapping[str, Tensor],
    *,
    spec: ModelSpec[C],
    config: C,
    end_of_text: int | None = None,
) -> None:
    """Write a checkpoint that `AutoModel.from_pretrained(folder)` reads.

    state: the parameters by canonical names, of the whole shapes that the model has. end_of_text: the token that ends a
    text, where the encoding does not say so by its name.
    """
    with quietly():
        model = converter_of(spec).to_transformers(config, state)
        if end_of_text is not None:
            for saying in filter(None, (model.config, model.generation_config)):
                saying.bos_token_id = saying.eos_token_id = end_of_text
        model.save_pretrained(folder)


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


def _tensors(folder: Path, *, trust: bool) -> dict[str, Tensor]:
    """Return every tensor of the files of a folder, on the CPU, by its name there. trust: also those in pickles."""
    names = weight_files(folder)
    if names[0].endswith(".bin") and not trust:
        raise DataError(
            f"{folder} has its weights in a pickle ({names[0]}), which can run any program with your rights when it is "
            "read: add --trust if you know who wrote it"
        )
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            tensor_files.check(folder / Path(name).name)
            tensors |= _load(folder / Path(name).name)
        except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise _unreadable(folder, f"{name}: {_line(error)}") from error
    return tensors


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that hold the weights of a folder: safetensors, else pickles.

    Raises: DataError where an index of them cannot be read.
    """
    if (folder / _SAFETENSORS).is_file():
        return [_SAFETENSORS]
    names = _files(folder, _SAFETENSORS)
    if any((folder / name).is_file() for name in names):
        return names
    if (folder / _PICKLE).is_file():
        return [_PICKLE]
    return _files(folder, _PICKLE) if (folder / f"{_PICKLE}{_INDEX}").is_file() else names


def _files(folder: Path, name: str) -> list[str]:
    """Return the files that hold the weights: this one, or those that the index beside it lists."""
    index = folder / f"{name}{_INDEX}"
    if not index.is_file():
        return [name]
    placed = _json(index, folder).get("weight_map")
    names = placed.values() if isinstance(placed, dict) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise _unreadable(folder, f"{index.name} lists no files")
    return sorted(set(names))


def _load(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if file.suffix != ".bin":
        return load_file(file)
    values = torch.load(file, map_location="cpu", weights_only=True)  # tensors alone: nothing else is made of it
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise ValueError("it holds something else than tensors by name")
    return values


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
