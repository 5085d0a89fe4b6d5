"""Convert Mixtral weights to and from Hugging Face transformers: other names, other order, the same numbers.

What is outside the mixtures is converted as in Llama. Their files have three matrices for each expert (w1 is the gate,
w3 what it gates, w2 goes down); ours hold all experts of a layer in two tensors (paralab.models.mixtral), and so does
their model in memory, whose names are taken as well.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paralab.errors import ConfigError
from paralab.models import llama_hf
from paralab.models.converter import check_names, check_rows, check_same, check_shape, check_values
from paralab.models.mixtral import MixtralConfig

if TYPE_CHECKING:
    from transformers import MixtralConfig as TheirConfig
    from transformers import MixtralForCausalLM

MODEL_TYPE = "mixtral"

_OURS = "Mixtral"
_EMBED, _HEAD = "embed_tokens.weight", "lm_head.weight"
_NEEDED = {"hidden_act": ("silu", "swish"), "sliding_window": (None,), "router_jitter_noise": (0.0, 0)}
_IN_FILES, _IN_MEMORY = ".block_sparse_moe.", ".mlp."


def config_from(theirs: "TheirConfig") -> MixtralConfig:
    """Return our config of theirs. A vocabulary of 257 is taken for bytes, any other for GPT-2's encoding.

    The coefficients of the routers' losses are ours: their balance loss is taken over all tokens of a batch.
    Raises: ValueError for a variant of Mixtral that computes something else.
    """
    check_values(theirs, _NEEDED, ours=_OURS)
    rope = theirs.rope_parameters
    if rope["rope_type"] != "default" or rope.keys() != {"rope_type", "rope_theta"}:
        raise ValueError(f"rope_parameters={rope}, this {_OURS} has rope_theta alone")
    experts = {"n_experts": theirs.num_local_experts, "top_k": theirs.num_experts_per_tok}
    return MixtralConfig(**llama_hf.fields_from(theirs, ours=_OURS), **experts)


def take(tensors: Mapping[str, Tensor], config: MixtralConfig) -> dict[str, Tensor]:
    """Return our state in fp32, of the shapes that `Mixtral` has; the tied weight under both names.

    tensors, raises: as in `placed`.
    """
    found = placed(tensors, config)
    state = {name: llama_hf.joined(name, [found[p] for p in parts], config) for name, parts in _names(config).items()}
    for i in range(config.n_layers):
        each = [_matrices(i, expert) for expert in range(config.n_experts)]
        ups = [llama_hf.joined("up.weight", [found[gate], found[up]], config) for gate, up, _ in each]
        state[f"blocks.{i}.mixture.experts.up"] = torch.stack(ups)
        state[f"blocks.{i}.mixture.experts.down"] = torch.stack([found[down].detach().float() for *_, down in each])
    return state | ({"head.weight": state["embed.tokens.weight"]} if config.tied else {})


def placed(tensors: Mapping[str, Tensor], config: MixtralConfig) -> dict[str, Tensor]:
    """Return their tensors, as they are, by the names of their files without the first part.

    tensors: those of MixtralForCausalLM by name, of any floating-point type; each has to have a place and its shape.
    Raises: ValueError for one that is missing, or that has no place in this Mixtral.
    """
    found = _by_expert({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    shapes = _shapes(config)
    check_names(found, shapes.keys(), ours=_OURS, besides={_HEAD})
    check_rows(found[_EMBED], config.vocab_size)
    if config.tied and _HEAD in found:
        check_same(_HEAD, found[_HEAD], found[_EMBED], ours=_OURS)
    for name, shape in shapes.items():
        check_shape(name, found[name], shape)
    return found


def to_transformers(config: MixtralConfig, state: Mapping[str, Tensor]) -> "MixtralForCausalLM":
    """Return their model (fp32).

    state: the parameters by canonical name, each of its whole shape in `Mixtral`.
    Raises: KeyError when a parameter is missing; ConfigError for a shared expert, which theirs has not.
    """
    from transformers import MixtralConfig as TheirConfig
    from transformers import MixtralForCausalLM

    if config.shared_ffn:
        raise ConfigError("a Mixtral with a shared expert is none of transformers: use --format safetensors")
    model = MixtralForCausalLM(
        TheirConfig(
            **llama_hf.fields_of(config),
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            num_local_experts=config.n_experts,
            num_experts_per_tok=config.top_k,
            router_aux_loss_coef=config.balance,
        )
    )
    values: dict[str, Tensor] = {}
    for name, parts in _names(config).items():
        values |= zip(map(_full, parts), llama_hf.parted(name, state[name], config), strict=True)
    for i in range(config.n_layers):
        ups = [torch.cat(llama_hf.parted("up.weight", up, config)) for up in state[f"blocks.{i}.mixture.experts.up"]]
        values[f"model.layers.{i}.mlp.experts.gate_up_proj"] = torch.stack(ups)
        values[f"model.layers.{i}.mlp.experts.down_proj"] = state[f"blocks.{i}.mixture.experts.down"].float()
    if config.tied:
        values[_HEAD] = values[f"model.{_EMBED}"]
    model.load_state_dict(values)
    return model.eval()


def _full(name: str) -> str:
    """Return what a tensor of their files is called in their model."""
    return name if name == _HEAD else f"model.{name.replace(_IN_FILES, _IN_MEMORY)}"


def _by_expert(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by the names of their files, of which each has one matrix of one expert."""
    each: dict[str, Tensor] = {}
    for name, tensor in found.items():
        match = re.fullmatch(r"(.*)\.mlp\.experts\.(gate_up_proj|down_proj)", name)
        if match is None:
            each[name.replace(".mlp.gate.", f"{_IN_FILES}gate.")] = tensor
            continue
        parts = ("w1", "w3") if match[2] == "gate_up_proj" else ("w2",)
        for expert, matrix in enumerate(tensor):
            names = [f"{match[1]}{_IN_FILES}experts.{expert}.{part}.weight" for part in parts]
            each |= zip(names, matrix.chunk(len(parts)), strict=True)
    return each


def _matrices(layer: int, expert: int) -> tuple[str, str, str]:
    """Return the names of gate, up and down of an expert."""
    gate, up, down = (f"layers.{layer}{_IN_FILES}experts.{expert}.{part}.weight" for part in ("w1", "w3", "w2"))
    return gate, up, down


def _names(config: MixtralConfig) -> dict[str, tuple[str, ...]]:
    """Return our name -> their names of the parts of every parameter that is no expert; of a tied one once."""
    names = {ours: parts for ours, parts in llama_hf.names(config).items() if ".mlp." not in ours}
    routers = {
        f"blocks.{i}.mixture.router.score.weight": (f"layers.{i}{_IN_FILES}gate.weight",)
        for i in range(config.n_layers)
    }
    return names | routers


def _shapes(config: MixtralConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of their tensors."""
    others = {part for parts in _names(config).values() for part in parts}
    shapes = {
        part: (config.n_experts, config.hidden) if _IN_FILES in part else llama_hf.shape(part, config)
        for part in others
    }
    up, down = (config.ffn, config.hidden), (config.hidden, config.ffn)
    for i in range(config.n_layers):
        for expert in range(config.n_experts):
            shapes |= zip(_matrices(i, expert), (up, up, down), strict=True)
    return shapes
