"""Smaller configurations of the same architecture: for proofs that take a second, and for parts of a model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from paralab.models.hugging_face.config import CausalLMConfig, as_text, new_model
from paralab.models.spec import WithoutInit

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
    "moe_topk": 2,
    "n_routed_experts": 8,  # so that two groups of them have some to choose from
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "vocab_size_per_layer_input": 288,
    "hidden_size_per_layer_input": 8,
}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id")
_TINY_LAYERS, _TINY_SEQ_LEN = 4, 16


@lru_cache(maxsize=32)
def tiny(config: CausalLMConfig) -> CausalLMConfig:
    """Return a config of the same architecture with a few thousand weights; what is smaller already stays as it is.

    The kinds of layers, norms, biases and caps are those of the config; grouped heads stay grouped. Where transformers
    makes no such model, the config itself is returned.
    """
    for token in (None, 0):  # some kinds need one
        small = _tiny(config, token)
        try:
            with torch.device("meta"), WithoutInit():
                new_model(small)
            return small
        except Exception:  # of transformers: values that do not go together
            continue
    return config


def _tiny(config: CausalLMConfig, token: int | None) -> CausalLMConfig:
    values = dict(json.loads(config.values))
    heads, shared = next((values[name] for name in _HEADS if values.get(name)), None), values.get("num_key_value_heads")
    values = _shrunk(values)
    if heads and shared and 1 < shared < heads:
        values["num_key_value_heads"] = 2
    if values["vocab_size"] < json.loads(config.values)["vocab_size"]:
        values |= {name: token for name in _TOKENS if name in values}
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


def _shrunk(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with sizes of a tiny model, also of those that single layers have."""
    return {
        name: _shrunk(value)
        if isinstance(value, dict)
        else min(value, _TINY[name])
        if name in _TINY and isinstance(value, int) and not isinstance(value, bool)
        else value
        for name, value in values.items()
    }


def _with_layers(values: Mapping[str, Any], config: CausalLMConfig, layers: int, *, mixed: bool) -> dict[str, Any]:
    """Return values with so many layers, in what has one value a layer too. mixed: of each kind of layer."""
    before = n_layers(config)
    changed: dict[str, Any] = {name: layers for name in _LAYERS if values.get(name) == before}
    for name, value in values.items():
        if isinstance(value, list) and len(value) == before:
            changed[name] = [value[old] for old in _kept(value, layers, mixed=mixed)]
    kept = _kept(values.get("layer_types") or range(before), layers, mixed=mixed and "layer_types" in values)
    for name, value in values.items():
        if isinstance(value, dict) and value and all(str(key).isdigit() and int(key) < before for key in value):
            of_layer = {int(key): each for key, each in value.items()}
            changed[name] = {str(new): of_layer[old] for new, old in enumerate(kept) if old in of_layer}
    return {**values, **changed}


def _kept(kinds: Sequence[Any], layers: int, *, mixed: bool) -> Sequence[int]:
    """Return which layers are kept: the first ones, or where they are mixed the first of each kind in turn."""
    firsts = list({str(kind): number for number, kind in reversed(list(enumerate(kinds)))}.values())[::-1]
    few = mixed and 1 < len(firsts) <= layers < len(kinds)
    return [sorted(firsts)[i % len(firsts)] for i in range(layers)] if few else range(layers)
