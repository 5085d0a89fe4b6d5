"""Smaller configurations of the same architecture: for proofs that take a second, and for parts of a model."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paralab.models.hugging_face.config import CausalLMConfig, as_text

# What a configuration calls a size -> the most of it in a tiny model.
_TINY: Mapping[str, int] = {
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_inner": 64,
    "ffn_dim": 64,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "rotary_dim": 8,
    "vocab_size": 288,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "sliding_window": 8,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id")
_TINY_LAYERS, _TINY_SEQ_LEN = 4, 16


def tiny(config: CausalLMConfig) -> CausalLMConfig:
    """Return a config of the same architecture with a few thousand weights; what is smaller already stays as it is.

    The kinds of layers, norms, biases and caps are those of the config; grouped heads stay grouped.
    """
    values = dict(json.loads(config.values))
    heads, shared = next((values[name] for name in _HEADS if values.get(name)), None), values.get("num_key_value_heads")
    for name, most in _TINY.items():
        if isinstance(values.get(name), int) and not isinstance(values[name], bool):
            values[name] = min(values[name], most)
    if heads and shared and 1 < shared < heads:
        values["num_key_value_heads"] = 2
    if values["vocab_size"] < json.loads(config.values)["vocab_size"]:
        values |= {name: None for name in _TOKENS if name in values}
    layers = min(_TINY_LAYERS, n_layers(config))
    values = _with_layers(values, config, layers, mixed=True)
    longest = None if config.longest is None else min(config.longest, _TINY["max_position_embeddings"])
    smaller = values["vocab_size"] < config.vocab_size
    return replace(
        config,
        values=as_text(values),
        longest=longest,
        seq_len=min(config.seq_len, _TINY_SEQ_LEN),
        tokenizer="bytes" if smaller else config.tokenizer,
    )


def with_layers(config: CausalLMConfig, layers: int) -> CausalLMConfig:
    """Return the same config with so many decoder layers, the first ones."""
    return replace(config, values=as_text(_with_layers(json.loads(config.values), config, layers, mixed=False)))


def n_layers(config: CausalLMConfig) -> int:
    """Return the number of decoder layers."""
    return int(config.theirs.num_hidden_layers)


def _with_layers(values: Mapping[str, Any], config: CausalLMConfig, layers: int, *, mixed: bool) -> dict[str, Any]:
    """Return values with so many layers, in lists that have one value a layer too. mixed: of each kind of layer."""
    before = n_layers(config)
    changed: dict[str, Any] = {name: layers for name in _LAYERS if values.get(name) == before}
    for name, value in values.items():
        if isinstance(value, list) and len(value) == before:
            kinds = list(dict.fromkeys(map(str, value)))
            by_kind = [next(x for x in value if str(x) == kind) for kind in kinds]
            few = mixed and 1 < len(kinds) <= layers < before
            changed[name] = [by_kind[i % len(kinds)] for i in range(layers)] if few else value[:layers]
    return {**values, **changed}
