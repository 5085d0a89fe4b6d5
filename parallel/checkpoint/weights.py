"""The weights of a checkpoint alone: in one process, and to and from safetensors files."""

from pathlib import Path

import torch
from torch import Tensor

from paralab.checkpoint import storage
from paralab.checkpoint.loading import opened
from paralab.engines.engine import Engine
from paralab.engines.state import model_chunks, whole


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a checkpoint in this process alone.

    Returns: canonical name -> tensor of its whole shape on the CPU, in the dtype it was saved in.
    Raises: DataError when the checkpoint is missing, damaged or of a newer format.
    """
    folder, _, saved = opened(Path(path))
    tensors = {
        name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in saved.items() if name.startswith("model.")
    }
    storage.load({name: [whole(tensor)] for name, tensor in tensors.items()}, folder, group=None)
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def export_safetensors(path: str | Path, target: str | Path) -> Path:
    """Write the weights of a checkpoint to `target/model.safetensors`, under canonical names. Return that path.

    A tied parameter is there once. Raises: DataError.
    """
    from safetensors.torch import save_file

    weights = read_weights(path)
    file = Path(target) / "model.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file, metadata={"format": "pt"})
    return file


def import_safetensors(engine: Engine, folder: str | Path) -> None:
    """Fill the model from safetensors files with canonical names; the optimizer stays as it is. Collective.

    Raises: DataError when a tensor is missing or of another shape.
    """
    storage.load(model_chunks(engine, prefix=""), Path(folder), group=engine.context.mesh.world)
