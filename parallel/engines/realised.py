"""Read back from an engine what it was really built with, and fail if it is not what was requested."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from paralab.axes.blocks import blocks_of
from paralab.axes.recompute import attention_of, is_offloaded, is_recomputed, recomputed_attention
from paralab.errors import ConfigError
from paralab.options.choices import EngineChoice
from paralab.options.config import RunConfig


def compare(engine: str, wanted: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first of the facts that is not what this run requested. engine: for the message."""
    for name, value in wanted.items():
        if got[name] != value:
            said = f"{engine} started with {name} {got[name]}"
            raise ConfigError(f"{said}, this run requested {value}: use --engine torch")


def check_blocks(engine: EngineChoice, parts: Iterable[nn.Module], run: RunConfig) -> None:
    """Raise ConfigError unless just what the run says is recomputed, compiled or offloaded: blocks, or attention.

    parts: what a rank holds of the model, with its blocks numbered from 0 over the whole model.
    """
    parts = list(parts)
    blocks = [item for part in parts for item in blocks_of(part).items()]
    every = run.checkpoint_every
    wanted = {
        "recomputed blocks": [number for number, _ in blocks if every and number % every == 0],
        "recomputed attention": sum(len(attention_of(part)) for part in parts) * (run.checkpointing == "selective"),
        "compiled blocks": [number for number, _ in blocks if run.compile != "none"],
        "offloaded blocks": [number for number, _ in blocks if run.checkpointing == "offload"],
    }
    got = {
        "recomputed blocks": [number for number, block in blocks if is_recomputed(block)],
        "recomputed attention": sum(map(recomputed_attention, parts)),
        "compiled blocks": [number for number, block in blocks if is_compiled(block)],
        "offloaded blocks": [number for number, block in blocks if is_offloaded(block)],
    }
    compare(engine, wanted, got)


def is_compiled(module: nn.Module) -> bool:
    """Return whether torch.compile runs a module, as `module.compile()` or as `torch.compile(module)` leave it."""
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
