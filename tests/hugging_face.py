"""Small models of transformers for tests: a folder with the configuration of each, and with weights where asked for."""

from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 272,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
_GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "vocab_size": 272}
_BALANCE = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.5}  # large enough for a fault to be seen
_EXPERTS = {**_BALANCE, "num_experts": 4, "moe_intermediate_size": 16}
_GROUPS = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None}

# Grouped heads, biases, tied and untied output layers, norms of heads, sliding windows, soft caps, learned positions,
# experts in all layers and in all but the first, norms without weights, experts in groups without a balance loss.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**_GROUPED, "attention_bias": True, "mlp_bias": True}),
    "qwen3": ("Qwen3", {**_GROUPED, "head_dim": 8, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3Text", {**_GROUPED, **_SLIDING, "head_dim": 8, "final_logit_softcapping": 30.0}),
    "gemma2": ("Gemma2", {**_GROUPED, **_SLIDING, "head_dim": 8}),
    "mistral": ("Mistral", {**_GROUPED, "sliding_window": 8}),
    "olmo2": ("Olmo2", _GROUPED),
    "olmo": ("Olmo", _GROUPED),
    "gpt_neox": ("GPTNeoX", _SIZES),
    "gpt2": ("GPT2", {**_GPT2, **_NO_TOKENS}),
    "granite": ("Granite", {**_GROUPED, "embedding_multiplier": 12.0}),
    "opt": ("OPT", {**_SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 4, "n_head": 4, "vocab_size": 272}),
    "stablelm": ("StableLm", _GROUPED),
    "mixtral": ("Mixtral", {**_GROUPED, **_BALANCE, "num_local_experts": 4}),
    "qwen3_moe": ("Qwen3Moe", {**_GROUPED, **_EXPERTS, "head_dim": 8, "mlp_only_layers": [0]}),
    "olmoe": ("Olmoe", {**_GROUPED, **_EXPERTS}),
    "deepseek_v3": ("DeepseekV3", {**_SIZES, **_EXPERTS, **_GROUPS, **_LATENT, "num_key_value_heads": 4}),
}

MIXTURES = ["mixtral", "qwen3_moe", "olmoe"]  # that have a balance loss
UNBALANCED = ["deepseek_v3"]


def config_of(name: str, **changes: Any) -> PreTrainedConfig:
    """Return the configuration of a small model."""
    kind, values = MODELS[name]
    return getattr(transformers, f"{kind}Config")(**{**values, **changes})


def write(name: str, folder: Path, *, weights: bool = False, **changes: Any) -> Path:
    """Write the configuration of a small model into a folder, and weights drawn by transformers; return the folder."""
    config = config_of(name, **changes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    if weights:
        model.save_pretrained(folder)
    else:
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
    return folder
