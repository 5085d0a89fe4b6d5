"""The shape of a model as a planner reads it: columns of the contract (docs/planner.md), from the config of a model."""

from typing import Any

from paralab.errors import ModelError
from paralab.models.spec import C, ModelSpec

# columns of the contract, and what configs call them, the first one that is there
_NAMES = {
    "layers": ("n_layers", "num_hidden_layers", "n_layer"),
    "hidden": ("hidden", "hidden_size", "n_embd"),
    "heads": ("n_heads", "num_attention_heads", "n_head"),
    "kv_heads": ("n_kv_heads", "num_key_value_heads"),
    "head_dim": ("head_dim",),
    "ffn": ("ffn", "intermediate_size", "n_inner"),
    "vocab": ("vocab_size",),
    "sequence_length": ("seq_len",),
}


def shape_of(spec: ModelSpec[C], config: C, size: str) -> dict[str, Any]:
    """Return the columns of a text model. Raises: ModelError for a model that is no transformer of texts."""
    theirs = getattr(config, "theirs", None)  # of transformers
    found: dict[str, Any] = {"model": f"{spec.name} {size}"}
    for column, names in _NAMES.items():
        for place in (config, theirs):
            value = next((v for name in names if isinstance(v := getattr(place, name, None), int)), None)
            if value is not None:
                found[column] = value
                break
    if config.task != "text" or "layers" not in found or "hidden" not in found:
        raise ModelError(
            f"{spec.name} {size} is not a transformer of texts, which is what step times are predicted for: give "
            "--model gpt2 or llama, a model of transformers, or --layers, --hidden and the other sizes"
        )
    block, outside = _numels(spec, config)
    hidden, heads = found["hidden"], found.get("heads", max(1, found["hidden"] // 128))
    head_dim = found.get("head_dim", hidden // heads)
    attention = 2 * hidden * head_dim * (heads + found.get("kv_heads", heads))
    gated = (block - attention) / (hidden * found.get("ffn", 4 * hidden)) > 2.5  # three matrices, not two
    found |= {
        "gated": gated,
        "norm": "rmsnorm" if gated else "layernorm",
        "position": "learned" if (found.get("sequence_length"), hidden) in outside else "rotary",
        "tied_embeddings": bool(spec.tied_in(config)),
    }
    return found


def _numels(spec: ModelSpec[C], config: C) -> tuple[int, set[tuple[int, ...]]]:
    """Return how many weights a block has, and the shapes of the parameters outside of blocks."""
    model, blocks = spec.on_meta(config), spec.blocks(config)
    inside = {id(p) for name in blocks for p in model.get_submodule(name).parameters()}
    shapes = {tuple(p.shape) for p in model.parameters() if id(p) not in inside}
    return sum(p.numel() for p in model.get_submodule(blocks[0]).parameters()) if blocks else 0, shapes
