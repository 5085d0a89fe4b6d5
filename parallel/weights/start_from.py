"""Start training from existing weights, whichever program wrote them: each rank takes its own pieces."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from paralab import checkpoint
from paralab.checkpoint.others import written_by_another
from paralab.engines.engine import Engine
from paralab.errors import ConfigError, DataError
from paralab.models import HUGGING_FACE, SPECS
from paralab.models.configs import C, ModelConfig, SequenceConfig
from paralab.models.spec import ModelSpec
from paralab.options.config import RunConfig
from paralab.weights import tensor_files

Kind = Literal["checkpoint", "hugging face", "nanogpt", "safetensors"]
RunT = TypeVar("RunT", bound=RunConfig)

_POSITIONS = "embed.positions.weight"
_MARKS: tuple[tuple[str, Kind], ...] = (  # a file that tells what wrote a folder
    ("facts.json", "checkpoint"),
    ("config.json", "hugging face"),
    ("model.safetensors", "safetensors"),
    ("ckpt.pt", "nanogpt"),
)

_FORMS = (
    "a Hugging Face folder, one that paralab export wrote, a checkpoint such as RUN/step-200, or a ckpt.pt of nanoGPT"
)


def kind_of(path: Path) -> Kind:
    """Return what wrote a folder, or a file of nanoGPT. Raises: ConfigError when nothing known did."""
    if path.is_file() and path.suffix in (".pt", ".pth"):
        return "nanogpt"
    if path.is_file() and path.suffix == ".gguf":
        return "hugging face"
    for name, kind in _MARKS:
        if (path / name).is_file():
            return kind
    if (newest := checkpoint.latest(path)) is not None:
        raise ConfigError(f"--init-from {path} is the folder of a run: give one of its checkpoints, such as {newest}")
    if not path.exists():
        raise ConfigError(f"--init-from {path} does not exist: give {_FORMS}")
    if path.is_file() and path.suffix == ".safetensors":
        raise ConfigError(f"--init-from {path} is a file of weights: give its folder, {path.parent}")
    if what := written_by_another(path):
        raise ConfigError(
            f"--init-from {path} is {what}, which is not read: let its program write a Hugging Face folder "
            "(save_pretrained)"
        )
    raise ConfigError(
        f"--init-from {path} has no {', '.join(name for name, _ in _MARKS[:-1])} or {_MARKS[-1][0]}: give {_FORMS}"
    )


def adopt(run: RunT, path: str | Path, *, trust: bool) -> tuple[RunT, str]:
    """Return the run with the sizes of the model that it starts from, and a line on what was taken over.

    The window is the requested one, or that of the requested size (of theirs, where none is) unless theirs is shorter.
    The line is empty where nothing but what was requested is taken.
    Raises: ConfigError or DataError when the weights cannot be used.
    """
    if run.model.startswith(HUGGING_FACE):
        return _checked(run, Path(path), trust=trust), ""
    found = _model(Path(path), trust=trust)
    if found is None:
        return run, ""
    spec, theirs = found
    _check_model(spec, run.model, Path(path))
    assert spec.size_of is not None, f"{spec.name} has a converter, and no size_of"
    size = spec.size_of(theirs)
    asked = _preset(spec, run.size)
    seq_len = _window(run, theirs, spec.config(size) if asked is None else asked, Path(path))
    adopted = replace(run, size=size, seq_len=seq_len)
    if asked is None or spec.size_of(asked) == size:
        return adopted, ""
    return adopted, f"--size {run.size} gives way to that of {path}: {size}"


def unread(run: RunConfig) -> str:
    """Return a line on the weights that lie beside the configuration of a model and are not read; empty where none do.

    Raises: ConfigError where there is no such model.
    """
    if not run.model.startswith(HUGGING_FACE):
        return ""
    from paralab.weights import causal_lm

    where = causal_lm.with_weights(run.model.removeprefix(HUGGING_FACE))
    if where is None:
        return ""
    said = f"model: initial values are drawn from the seed, and the weights in {where} are not read"
    return f"{said}: --init-from {where} starts from them"


def _checked(run: RunT, path: Path, *, trust: bool) -> RunT:
    """Return a run of a model of transformers, as it is, once the weights that it starts from are found to be its own.

    Raises: ConfigError or DataError.
    """
    from paralab.weights import causal_lm

    kind = kind_of(path)
    if kind == "nanogpt":
        raise ConfigError(f"--init-from {path} is of nanoGPT: use --model gpt2")
    if kind == "hugging face" and (config := _preset(SPECS[run.model], run.size or "full")) is not None:
        causal_lm.check(path, config, trust=trust)
    return run


def _window(run: RunConfig, theirs: ModelConfig, ours: ModelConfig, path: Path) -> int | None:
    """Return the positions of a sequence; None for models of something else."""
    if not isinstance(theirs, SequenceConfig) or not isinstance(ours, SequenceConfig):
        return None
    if run.seq_len is not None and run.seq_len > theirs.seq_len:
        raise ConfigError(f"--seq-len {run.seq_len}: {path} has {theirs.seq_len} positions, use that or fewer")
    return run.seq_len or min(theirs.seq_len, ours.seq_len)


def _preset(spec: ModelSpec[C], size: str | None) -> C | None:
    """Return the config of the requested size; None without one, or where it is unknown, which is refused later."""
    try:
        return spec.config(size) if size is not None else None
    except (KeyError, ValueError):
        return None


def _model(path: Path, *, trust: bool) -> tuple[ModelSpec, ModelConfig] | None:
    """Return what another program wrote; None for what is ours, whose names and shapes are compared."""
    from paralab.weights import hugging_face, nanogpt

    kind = kind_of(path)
    if kind == "hugging face" and path.is_file():
        raise ConfigError(
            f"--init-from {path} is a GGUF file, of a model of transformers: give that as --model hf:NAME"
        )
    if kind == "hugging face":
        return hugging_face.check(path, trust=trust)
    if kind == "nanogpt":
        return SPECS["gpt2"], nanogpt.from_nanogpt(_pickle(path), trust=trust)[0]
    return None


def _check_model(spec: ModelSpec[C], model: str, path: Path) -> None:
    if spec.name != model:
        raise ConfigError(f"--init-from {path} is a {spec.name}: use --model {spec.name}")


def start_from(engine: Engine, path: str | Path, *, trust: bool = False) -> None:
    """Fill the model with the weights of a folder; the optimizer stays as it is. Every rank reads all of them.

    path: a Hugging Face folder, one that `paralab export` wrote, a checkpoint, or a ckpt.pt of nanoGPT; for a model of
    transformers a GGUF file as well.
    Raises: DataError when it cannot be read; ConfigError when it holds another model.
    """
    context = engine.context
    _load_into(engine, read(Path(path), context.spec, context.model_config, trust=trust), Path(path))


def read(path: Path, spec: ModelSpec[C], config: C, *, trust: bool = False) -> Mapping[str, Tensor]:
    """Return tensors of whole shapes on the CPU by canonical names; learned positions cut to the window of the config.

    path, trust: as in `start_from`.
    Raises: DataError when it cannot be read; ConfigError when it holds another model.
    """
    from paralab.models.hugging_face import CausalLMConfig
    from paralab.weights import causal_lm, hugging_face, nanogpt

    kind = kind_of(path)
    if kind == "checkpoint":
        return checkpoint.read_weights(path)
    if kind == "safetensors":
        return _read(path / "model.safetensors")
    if isinstance(config, CausalLMConfig):
        return causal_lm.read(path, config)
    if kind == "nanogpt":
        _check_model(SPECS["gpt2"], spec.name, path)
        theirs: Any
        theirs, state = nanogpt.from_nanogpt(_pickle(path), trust=trust)
    else:
        _check_model(hugging_face.read_config(path, trust=trust)[0], spec.name, path)
        theirs, state = hugging_face.from_hugging_face(path, trust=trust)
    if spec.size_of is not None and (size := spec.size_of(theirs)) != spec.size_of(config):
        raise ConfigError(f"--init-from {path} is of size {size}, the model of size {spec.size_of(config)}: use its")
    if _POSITIONS in state and isinstance(config, SequenceConfig):
        state[_POSITIONS] = state[_POSITIONS][: config.seq_len]  # shorter windows use the first positions
    return state


def _pickle(path: Path) -> Path:
    return path if path.is_file() else path / "ckpt.pt"


def _read(file: Path) -> dict[str, Tensor]:
    tensor_files.check(file)
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} cannot be read ({error}): write it again with paralab export") from None


@torch.no_grad()
def _load_into(engine: Engine, state: Mapping[str, Tensor], folder: Path) -> None:
    tied = engine.context.tied
    _check_places(state, engine, folder)
    # Others may keep a tied parameter under its other name.
    state = {origin: state[name] for name, origin in tied.items() if name in state} | dict(state)
    for part in engine.parts:
        for name, tensor in part.state_dict(keep_vars=True).items():
            full = state.get(tied.get(name, name))
            shape = getattr(tensor, "ds_shape", tensor.shape)  # stage 3 of DeepSpeed leaves an empty tensor there
            if full is None or full.shape != shape:
                got = "is missing" if full is None else f"has shape {tuple(full.shape)}, not {tuple(shape)}"
                raise ConfigError(f"--init-from {folder}: {name} {got}; use the --model, --size and --seq-len it has")
    engine.set_values(lambda name: state[tied.get(name, name)])


def _check_places(state: Mapping[str, Tensor], engine: Engine, folder: Path) -> None:
    """Raise ConfigError for a tensor that has no place in the model, or that differs from the one it is tied to."""
    extra = sorted(state.keys() - engine.context.new_model().state_dict().keys())
    if extra:
        raise ConfigError(
            f"--init-from {folder} has {extra[0]}{f' and {len(extra) - 1} more' if len(extra) > 1 else ''}, which the "
            "model has no place for: use the --model, --size and options that it was trained with"
        )
    for name, origin in engine.context.tied.items():
        if name in state and origin in state and not torch.equal(state[name], state[origin]):
            raise ConfigError(f"--init-from {folder}: {name} and {origin} differ, and the model shares them")
