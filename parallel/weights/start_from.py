"""Weights to start training from, whatever wrote them, put into the pieces that this rank holds."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.gpt2 import GPT2Config
from parallel import checkpoint
from parallel.engines.deepspeed import ZeroEngine
from parallel.errors import ConfigError, DataError
from parallel.initialise import local, local_slice

_SIZES = ("n_layers", "hidden", "n_heads", "vocab_size")  # what two GPT-2s must share to have the same parameters


def check(path: str | Path) -> None:
    """Raise ConfigError unless a path looks like something to start from."""
    folder = Path(path)
    if not any((folder / name).is_file() for name in ("config.json", "model.safetensors", "facts.json")):
        raise ConfigError(
            f"--init-from {path} has no config.json, model.safetensors or facts.json: give a Hugging Face folder, one "
            "that paralab export wrote, or a checkpoint such as RUN/step-200"
        )


def start_from(engine: checkpoint.Resumable, path: str | Path) -> None:
    """Fill the model with the weights of a folder; the optimizer stays as it is. Every rank reads all of them.

    path: a Hugging Face GPT-2, a folder that `paralab export` wrote, or a checkpoint.
    Raises: DataError when it cannot be read; ConfigError when it holds another model.
    """
    folder, config = Path(path), engine.context.model_config
    if (folder / "facts.json").is_file():
        state: Mapping[str, Tensor] = checkpoint.read_weights(folder)
    elif (folder / "config.json").is_file():
        state = _hugging_face(folder, config)
    else:
        state = _read(folder / "model.safetensors")
    _fill(engine, state, folder)


def _hugging_face(folder: Path, config: object) -> dict[str, Tensor]:
    from parallel.weights.hugging_face import from_hugging_face

    if not isinstance(config, GPT2Config):
        raise ConfigError(f"--init-from {folder} is a GPT-2: use --model gpt2")
    theirs, state = from_hugging_face(folder)
    different = [f"{key} {getattr(theirs, key)}" for key in _SIZES if getattr(theirs, key) != getattr(config, key)]
    if theirs.seq_len < config.seq_len:
        different.append(f"seq_len {theirs.seq_len}")
    if different:
        raise ConfigError(f"--init-from {folder} has {', '.join(different)}: use the --size and --seq-len that fit it")
    positions = "embed.positions.weight"
    return state | {positions: state[positions][: config.seq_len]}  # shorter windows use the first positions


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} cannot be read ({error}): write it again with paralab export") from None


@torch.no_grad()
def _fill(engine: checkpoint.Resumable, state: Mapping[str, Tensor], folder: Path) -> None:
    tied = engine.context.spec.tied
    # Others may keep a tied parameter under its other name.
    state = {origin: state[name] for name, origin in tied.items() if name in state} | dict(state)
    for part in engine.parts:
        for name, tensor in part.state_dict(keep_vars=True).items():
            full = state.get(tied.get(name, name))
            shape = getattr(tensor, "ds_shape", tensor.shape)  # stage 3 of DeepSpeed leaves an empty tensor there
            if full is None or full.shape != shape:
                got = "is missing" if full is None else f"has shape {tuple(full.shape)}, not {tuple(shape)}"
                raise ConfigError(f"--init-from {folder}: {name} {got}; use the --model, --size and --seq-len it has")
            if not (isinstance(engine, ZeroEngine) and isinstance(tensor, nn.Parameter)):
                local(tensor).copy_(local_slice(full, tensor))
    if isinstance(engine, ZeroEngine):
        engine.set_parameters(lambda name: state[tied.get(name, name)])
