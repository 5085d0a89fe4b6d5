"""Checkpoints of nanoGPT (`ckpt.pt`): a pickle with the weights and the sizes of a GPT-2."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paralab.errors import ConfigError, DataError
from paralab.models.gpt2 import GPT2Config
from paralab.models.gpt2_hf import take
from paralab.models.vocabulary import tokenizer_of

# what nanoGPT's model_args call the fields of our config
_SIZES = {
    "n_layers": "n_layer",
    "hidden": "n_embd",
    "n_heads": "n_head",
    "seq_len": "block_size",
    "vocab_size": "vocab_size",
}
_COMPILED = "_orig_mod."  # before every name where the model was compiled


def from_nanogpt(file: Path, *, trust: bool) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Read a checkpoint; return the config and the state by canonical names.

    The state is fp32 and has the shapes that `GPT2` has. Its GELU is the exact one, ours the approximation by tanh, as
    in the first GPT-2: they differ by up to 5e-4.
    Raises: ConfigError without `trust`; DataError when it cannot be read or is not this GPT-2.
    """
    values = _load(file, trust=trust)
    config = _config(values, file)
    try:
        tensors = {str(name).removeprefix(_COMPILED): tensor for name, tensor in values["model"].items()}
        return config, take(tensors, config, out_in=True)
    except (ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{file} is not a GPT-2 that can be used here ({error}): give another checkpoint") from error


def _config(values: dict[str, Any], file: Path) -> GPT2Config:
    sizes = values.get("model_args")
    if not isinstance(sizes, dict) or any(not isinstance(sizes.get(name), int) for name in _SIZES.values()):
        raise DataError(f"{file} has no model_args with {', '.join(_SIZES.values())}: give a ckpt.pt of nanoGPT")
    if sizes.get("bias") is False:
        raise DataError(f"{file} was trained with bias=False, and this GPT-2 has biases: give one with bias=True")
    try:
        return GPT2Config(
            **{ours: sizes[theirs] for ours, theirs in _SIZES.items()},
            tokenizer=tokenizer_of(sizes["vocab_size"]),
        )
    except ValueError as error:
        raise DataError(f"{file}: model_args: {error}: give another checkpoint") from error


def _load(file: Path, *, trust: bool) -> dict[str, Any]:
    if not trust:
        raise ConfigError(
            f"--init-from {file} is a pickle, which can run any program with your rights when it is read: add --trust "
            "if you know who wrote it"
        )
    try:
        try:
            values = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # it holds more than tensors and plain values
            values = torch.load(file, map_location="cpu", weights_only=False)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{file} cannot be read ({why}): give a ckpt.pt of nanoGPT") from error
    if not isinstance(values, dict):
        raise DataError(f"{file} holds a {type(values).__name__}: give a ckpt.pt of nanoGPT")
    return values
