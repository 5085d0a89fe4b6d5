"""Convert Llama weights to and from Hugging Face transformers: other names, other order, the same numbers.

Theirs are single layers for query, key, value, gate and up; ours hold the same rows in one layer for attention and one
for the MLP, by key-value head and by part (paralab.models.llama). They have no padding rows in the vocabulary.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paralab.models.converter import check_names, check_rows, check_same, check_shape, check_values, with_padding
from paralab.models.llama import LlamaConfig, RopeScaling
from paralab.models.vocabulary import end_of_text, tokenizer_of

if TYPE_CHECKING:
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

MODEL_TYPE = "llama"

_OURS = "Llama"
_EMBED, _HEAD = "embed_tokens.weight", "lm_head.weight"
_BUFFER = "rotary_emb.inv_freq"  # which older versions saved
# ours -> the layers whose rows it holds
_IN_BLOCK = {
    "norm1": ("input_layernorm",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.o_proj",),
    "norm2": ("post_attention_layernorm",),
    "mlp.up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}
# What their configuration must say for their model to compute what ours does.
_NEEDED = {"hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,)}
# our field -> their key
_FIELDS = {
    "n_layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "ffn": "intermediate_size",
    "seq_len": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
}
# our field of the scaling -> their key
_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_seq_len": "original_max_position_embeddings",
}


def config_from(theirs: "TheirConfig") -> LlamaConfig:
    """Return our config of theirs. A vocabulary of 257 is taken for bytes, any other for GPT-2's encoding.

    Raises: ValueError for a variant of Llama that computes something else.
    """
    check_values(theirs, _NEEDED, ours=_OURS)
    rope = dict(theirs.rope_parameters)
    rope.pop("rope_theta")
    return LlamaConfig(**fields_from(theirs, ours=_OURS), rope_scaling=_scaling(rope))


def fields_from(theirs: Any, *, ours: str) -> dict[str, Any]:
    """Return what a configuration of theirs says of the fields of any config that is a Llama's, but for its scaling.

    Raises: ValueError where the heads are wider than the width of the model says.
    """
    width = theirs.hidden_size // theirs.num_attention_heads
    if theirs.head_dim not in (None, width):
        raise ValueError(f"head_dim={theirs.head_dim}, this {ours} has hidden_size / num_attention_heads, {width}")
    return {
        **{field: getattr(theirs, key) for field, key in _FIELDS.items()},
        "rope_theta": float(theirs.rope_parameters["rope_theta"]),
        "tied": bool(theirs.tie_word_embeddings),
        "tokenizer": tokenizer_of(theirs.vocab_size),
    }


def fields_of(config: LlamaConfig) -> dict[str, Any]:
    """Return what a configuration of theirs says of any config that is a Llama's, but for its rotary positions."""
    end = end_of_text(config.tokenizer, config.vocab_size)
    return {
        **{key: getattr(config, field) for field, key in _FIELDS.items()},
        "tie_word_embeddings": config.tied,
        "bos_token_id": end,
        "eos_token_id": end,
    }


def _scaling(rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.pop("rope_type")
    if kind not in ("default", "llama3"):
        raise ValueError(f"rope_type={kind!r}, this {_OURS} has 'default' or 'llama3'")
    if unknown := sorted(rope.keys() - (_SCALING.values() if kind == "llama3" else ())):
        raise ValueError(f"rope_parameters have {unknown[0]}, which this {_OURS} has no use for")
    return RopeScaling(**{ours: rope[key] for ours, key in _SCALING.items()}) if kind == "llama3" else None


def take(tensors: Mapping[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """Return our state in fp32, of the shapes that `Llama` has; the tied weight under both names.

    tensors, raises: as in `placed`.
    """
    found = placed(tensors, config)
    state = {name: joined(name, [found[part] for part in parts], config) for name, parts in names(config).items()}
    return state | ({"head.weight": state["embed.tokens.weight"]} if config.tied else {})


def placed(tensors: Mapping[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """Return their tensors, as they are, by their names without the first part; each has to have a place and its shape.

    tensors: those of LlamaForCausalLM by name, or of LlamaModel where the output layer is the embedding.
    Raises: ValueError for one that is missing, that has no place in this Llama, or that it does not compute with.
    """
    found = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if not name.endswith(_BUFFER)}
    needed = {part for parts in names(config).values() for part in parts}
    check_names(found, needed, ours=_OURS, besides={_HEAD})
    check_rows(found[_EMBED], config.vocab_size)
    if config.tied and _HEAD in found:
        check_same(_HEAD, found[_HEAD], found[_EMBED], ours=_OURS)
    for name in needed:
        check_shape(name, found[name], shape(name, config))
    return found


def to_transformers(config: LlamaConfig, state: Mapping[str, Tensor]) -> "LlamaForCausalLM":
    """Return their model (fp32).

    state: the parameters by canonical name, each of its whole shape in `Llama`.
    Raises: KeyError when a parameter is missing.
    """
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(TheirConfig(**fields_of(config), rope_parameters=_rope(config)))
    values: dict[str, Tensor] = {}
    for name, parts in names(config).items():
        rows = parted(name, state[name], config)
        values |= {part if part == _HEAD else f"model.{part}": row for part, row in zip(parts, rows, strict=True)}
    if config.tied:
        values[_HEAD] = values[f"model.{_EMBED}"]
    model.load_state_dict(values)
    return model.eval()


def _rope(config: LlamaConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    numbers = {key: getattr(scaling, ours) for ours, key in _SCALING.items()}
    return {"rope_type": "llama3", "rope_theta": config.rope_theta, **numbers}


def names(config: LlamaConfig) -> dict[str, tuple[str, ...]]:
    """Return our name -> their names of the parts of every parameter; of a tied one once."""
    modules: dict[str, tuple[str, ...]] = {"embed.tokens": ("embed_tokens",), "norm": ("norm",)}
    for i in range(config.n_layers):
        modules |= {f"blocks.{i}.{x}": tuple(f"layers.{i}.{y}" for y in parts) for x, parts in _IN_BLOCK.items()}
    if not config.tied:
        modules["head"] = ("lm_head",)
    return {f"{ours}.weight": tuple(f"{part}.weight" for part in parts) for ours, parts in modules.items()}


def shape(name: str, config: LlamaConfig) -> tuple[int, ...]:
    """Return the shape of one of their tensors."""
    layer, keys = name.split(".")[-2], config.n_kv_heads * config.head_dim
    outputs = {"k_proj": keys, "v_proj": keys, "gate_proj": config.ffn, "up_proj": config.ffn}
    vocabulary = {"embed_tokens": config.vocab_size, "lm_head": config.vocab_size}
    if layer.endswith("norm"):
        return (config.hidden,)
    return ((outputs | vocabulary).get(layer, config.hidden), config.ffn if layer == "down_proj" else config.hidden)


def _groups(name: str, config: LlamaConfig) -> tuple[int, list[int]]:
    """Return how many groups the rows of one of ours are in, and how many of them each part has in a group."""
    if name.endswith("qkv.weight"):
        return config.n_kv_heads, [config.n_heads // config.n_kv_heads * config.head_dim, *[config.head_dim] * 2]
    if name.endswith("up.weight"):
        return config.ffn_parts, [config.ffn // config.ffn_parts] * 2
    return 1, []


def joined(name: str, parts: list[Tensor], config: LlamaConfig) -> Tensor:
    """Return one of our parameters in fp32, (sum of rows, width), of the parts (rows, width) that theirs has of it."""
    parts = [part.detach().float() for part in parts]
    if name in ("embed.tokens.weight", "head.weight"):
        return with_padding(parts[0], config.padded_vocab)
    groups, _ = _groups(name, config)
    rows = [part.unflatten(0, (groups, -1)) for part in parts]
    return torch.cat(rows, dim=1).flatten(0, 1).contiguous()


def parted(name: str, value: Tensor, config: LlamaConfig) -> list[Tensor]:
    """Return the parts (rows, width) that theirs has, in fp32, of one of our parameters (sum of rows, width)."""
    value = value.detach().float()
    if name in ("embed.tokens.weight", "head.weight"):
        return [value[: config.vocab_size]]
    groups, rows = _groups(name, config)
    parts = value.unflatten(0, (groups, -1)).split(rows, dim=1) if rows else [value[None]]
    return [part.flatten(0, 1) for part in parts]
