"""GPT-2 checkpoints of Hugging Face, read from a folder or the hub and written to a folder (safetensors)."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from models.gpt2 import GPT2Config
from models.gpt2_hf import from_transformers, to_transformers
from parallel.errors import DataError


def from_hugging_face(folder_or_name: str | Path) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Read a checkpoint such as `gpt2`, or a folder of one; return the config and the state by canonical names.

    Raises: DataError when it cannot be read, is damaged or is not this GPT-2.
    """
    from transformers import AutoConfig, GPT2LMHeadModel

    name = str(folder_or_name)
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "gpt2":
            raise ValueError(f"its model_type is {kind!r}")
        model, report = GPT2LMHeadModel.from_pretrained(name, output_loading_info=True, use_safetensors=True)
        if report["missing_keys"]:  # transformers draws them at random
            raise ValueError(f"it lacks {', '.join(sorted(report['missing_keys'])[:3])}")
        return from_transformers(model)
    except ValueError as error:
        needed = "use gpt2, gpt2-medium, gpt2-large, gpt2-xl or a model of that form"
        raise DataError(f"{name} is not a GPT-2 that can be used here ({_line(error)}): {needed}") from error
    except (OSError, SafetensorError) as error:
        raise DataError(_unreadable(name, error)) from error


def to_hugging_face(folder: str | Path, config: GPT2Config, state: Mapping[str, Tensor]) -> None:
    """Write a checkpoint that `GPT2LMHeadModel.from_pretrained(folder)` reads. `state` holds full parameters."""
    to_transformers(config, state).save_pretrained(folder)


def _unreadable(name: str, error: Exception) -> str:
    if Path(name).is_dir():
        return f"checkpoint {name} cannot be read ({_line(error)}): use a folder with config.json and model.safetensors"
    local = Path(name).name
    return (
        f"{name!r} is not a folder here and cannot be fetched from the hub ({_line(error)}): where there is a network "
        f"type `hf download {name} --local-dir {local}`, and give the folder {local}"
    )


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
