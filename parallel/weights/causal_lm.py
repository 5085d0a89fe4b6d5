"""Weights of causal language models of transformers: read by `from_pretrained`, written by `save_pretrained`."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paralab.errors import ConfigError, DataError, UsageError
from paralab.models.hugging_face import CausalLMConfig, folder
from paralab.models.hugging_face.config import new_model, quietly, with_values
from paralab.models.hugging_face.stages import unwrapped
from paralab.weights import hugging_face, tensor_files

_WEIGHTS = ("*.safetensors", "*.bin")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def with_weights(name: str) -> Path | None:
    """Return the folder or file of a model where it holds weights; None where it does not. Raises: ConfigError."""
    where = folder.find(name)
    return where if _is_gguf(where) or any(any(where.glob(pattern)) for pattern in _WEIGHTS) else None


def check(path: Path, config: CausalLMConfig, *, trust: bool = False) -> None:
    """Refuse a folder or GGUF file whose weights are not those of a model, before any of them is read.

    Raises: ConfigError when it holds another model or no weights; DataError when the weights are a pickle and not
    trusted, or the folder cannot be read.
    """
    theirs = _config(path)
    with torch.device("meta"):
        whole = new_model(theirs)
        there, here = _shapes(whole), _shapes(new_model(config))
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            got = f"{name} of shape {there[name]}" if name in there else f"no {name}"
            raise ConfigError(
                f"--init-from {path} has {got}, and the model {here.get(name, 'none')}: use --model hf:{path}, "
                "or give the folder that the model was read from"
            )
    if _is_gguf(path):
        return
    if adapter := next((file.name for file in sorted(path.glob("adapter_*"))), None):
        raise DataError(
            f"{path} has an adapter ({adapter}), which would not be trained: merge it first, "
            "model.merge_and_unload().save_pretrained(FOLDER) in peft, and give that folder"
        )
    kinds = sorted({file.suffix for pattern in _WEIGHTS for file in path.glob(pattern)})
    if not kinds:
        raise ConfigError(
            f"--init-from {path} has no weights (model.safetensors), only a configuration: leave --init-from out to "
            "train from initial values, or give a folder with weights"
        )
    if kinds == [".bin"] and not trust:
        raise DataError(
            f"{path} has its weights in a pickle (pytorch_model.bin), which can run any program with your rights when "
            "it is read: add --trust if you know who wrote it"
        )
    floats = {name for name, tensor in whole.state_dict().items() if tensor.is_floating_point()}
    prefix = f"{getattr(whole, 'base_model_prefix', '')}."  # which names of a base model do without
    for name in hugging_face.weight_files(path):
        tensor_files.check(path / name, floats=floats | {name.removeprefix(prefix) for name in floats})


def read(path: Path, config: CausalLMConfig) -> dict[str, Tensor]:
    """Return the weights of a folder or GGUF file in fp32, on the CPU, by the names of the model, checked before.

    Raises: DataError when it is damaged, or lacks a tensor or has one without a place.
    """
    from transformers import AutoModelForCausalLM

    where: dict[str, Any] = {"pretrained_model_name_or_path": path}
    if _is_gguf(path):
        where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        with quietly():
            model, found = AutoModelForCausalLM.from_pretrained(
                **where,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
                local_files_only=True,
                trust_remote_code=False,
            )
    except Exception as error:  # of damaged files, which may be any
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        advice = "give a folder that save_pretrained wrote"
        raise DataError(f"--init-from {path} cannot be read ({why}): {advice}") from None
    for kind, says in _LOST.items():
        if names := sorted(key if isinstance(key, str) else str(key[0]) for key in found.get(kind) or ()):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise DataError(
                f"--init-from {path}: {says} {names[0]}{more}: give a folder that save_pretrained of a "
                f"{config.architecture} wrote"
            )
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


_LOST = {
    "missing_keys": "its weights lack",
    "unexpected_keys": "the model has no place for its",
    "mismatched_keys": "of another shape than in the model is its",
}


def write(folder_path: Path, config: CausalLMConfig, model: nn.Module, *, source: str) -> str:
    """Write a model, in fp32, as a folder that `from_pretrained` reads; return what is said of its tokenizer.

    model: as it was trained; it is of no use to strategies afterwards. source: what the model was read from, whose
    tokenizer is copied.
    """
    their = unwrapped(model)
    their.config = with_values(config)  # with the dropout that it came with
    their.config.architectures, their.config.dtype = [config.architecture], torch.float32  # type: ignore[union-attr]
    with quietly():
        their.save_pretrained(folder_path)  # type: ignore[operator]
    if Path(config.tokenizer).name != "tokenizer.json":
        from paralab.weights import tokenizer_files

        tokenizer_files.save(config.tokenizer, folder_path, longest=config.seq_len)
        return f"with the tokenizer {config.tokenizer} that texts were read with"
    copied = list(_copy(_TOKENIZER_FILES, Path(config.tokenizer).parent, folder_path))
    return f"with the tokenizer of {source} ({', '.join(copied)})" if copied else "without a tokenizer: it has moved"


def _copy(names: Iterable[str], source: Path, target: Path) -> Iterable[str]:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
            yield name


def _config(path: Path) -> CausalLMConfig:
    try:
        return folder.read(str(path))
    except UsageError as error:
        raise ConfigError(f"--init-from {path}: {error}") from None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _is_gguf(path: Path) -> bool:
    return path.is_file() and path.suffix == ".gguf"
