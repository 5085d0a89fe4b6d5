"""Convert GPT-2 weights to and from Hugging Face transformers: other names, other order, the same numbers.

Their linear layers hold (in, out) matrices, ours (out, in). Their joint projection holds all queries, then all keys,
then all values; ours goes head by head. They have no padding rows in the vocabulary.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from paralab.models.converter import check_names, check_rows, check_same, check_shape, check_values, with_padding
from paralab.models.gpt2 import GPT2Config
from paralab.models.vocabulary import end_of_text, tokenizer_of

if TYPE_CHECKING:
    from transformers import GPT2Config as TheirConfig
    from transformers import GPT2LMHeadModel

MODEL_TYPE = "gpt2"

_OURS = "GPT-2"
_HEAD = "lm_head.weight"
_MASK = re.compile(r"(^|\.)h\.\d+\.attn\.(masked_)?bias$")  # the causal mask, which older versions saved
_ENDS = {"embed.tokens": "wte", "embed.positions": "wpe", "norm": "ln_f"}
_IN_BLOCK = {
    "norm1": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "norm2": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
# What their configuration must say for their model to compute what ours does.
_NEEDED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def config_from(theirs: "TheirConfig") -> GPT2Config:
    """Return our config of theirs. A vocabulary of 257 is taken for bytes, any other for GPT-2's encoding.

    Raises: ValueError for a variant of GPT-2 that computes something else.
    """
    check_values(theirs, _NEEDED, ours=_OURS)
    if theirs.n_inner not in (None, 4 * theirs.n_embd):
        raise ValueError(f"n_inner={theirs.n_inner}, this GPT-2 has n_inner={4 * theirs.n_embd}, four times n_embd")
    return GPT2Config(
        n_layers=theirs.n_layer,
        hidden=theirs.n_embd,
        n_heads=theirs.n_head,
        seq_len=theirs.n_positions,
        vocab_size=theirs.vocab_size,
        tokenizer=tokenizer_of(theirs.vocab_size),
    )


def take(tensors: Mapping[str, Tensor], config: GPT2Config, *, out_in: bool = False) -> dict[str, Tensor]:
    """Return our state in fp32, of the shapes that `GPT2` has, from their tensors.

    tensors, out_in, raises: as in `placed`.
    """
    found = placed(tensors, config, out_in=out_in)
    state = {name: _to_ours(value, name, config, out_in=out_in) for name, value in found.items()}
    state["head.weight"] = state["embed.tokens.weight"]
    return state


def placed(tensors: Mapping[str, Tensor], config: GPT2Config, *, out_in: bool = False) -> dict[str, Tensor]:
    """Return their tensors, as they are, under our names; each has to have a place and its shape.

    tensors: those of GPT2LMHeadModel by name, or of GPT2Model, whose names lack the first part. out_in: matrices are
    (out, in), as nanoGPT has them, and not (in, out).
    Raises: ValueError for one that is missing, that has no place in this GPT-2, or that it does not compute with.
    """
    found = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items() if not _MASK.search(name)}
    names = _names(config)
    check_names(found, set(names.values()), ours=_OURS, besides={_HEAD})
    embedding = found[names["embed.tokens.weight"]]
    check_rows(embedding, config.vocab_size)
    if _HEAD in found:
        check_same(_HEAD, found[_HEAD], embedding, ours=_OURS)
    for ours, name in names.items():
        check_shape(name, found[name], _shape(ours, config, out_in=out_in))
    return {ours: found[name] for ours, name in names.items()}


def _shape(ours: str, config: GPT2Config, *, out_in: bool) -> tuple[int, ...]:
    """Return the shape that their tensor has to have, by our name of it."""
    width = config.hidden
    if ours.startswith("embed"):
        return (config.vocab_size if "tokens" in ours else config.seq_len, width)
    inputs, outputs = {"qkv": (1, 3), "up": (1, 4), "down": (4, 1)}.get(ours.split(".")[-2], (1, 1))
    if not _is_matrix(ours):
        return (outputs * width,)
    return (outputs * width, inputs * width) if out_in else (inputs * width, outputs * width)


def to_transformers(config: GPT2Config, state: Mapping[str, Tensor]) -> "GPT2LMHeadModel":
    """Return their model (fp32, no dropout).

    state: the parameters by canonical name, each of its whole shape in `GPT2`.
    Raises: KeyError when a parameter is missing.
    """
    from transformers import GPT2Config as TheirConfig
    from transformers import GPT2LMHeadModel

    end = end_of_text(config.tokenizer, config.vocab_size)
    model = GPT2LMHeadModel(
        TheirConfig(
            vocab_size=config.vocab_size,
            n_positions=config.seq_len,
            n_embd=config.hidden,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
        )
    )
    values = {name: _to_theirs(state[ours], ours, config) for ours, name in _names(config).items()}
    model.transformer.load_state_dict(values)  # the head shares the embedding's storage
    return model.eval()


def _names(config: GPT2Config) -> dict[str, str]:
    """Return our name -> their name of every parameter."""
    modules = dict(_ENDS)
    for i in range(config.n_layers):
        modules |= {f"blocks.{i}.{ours}": f"h.{i}.{theirs}" for ours, theirs in _IN_BLOCK.items()}
    return {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in modules.items()
        for kind in (("weight",) if ours.startswith("embed") else ("weight", "bias"))
    }


def _to_ours(value: Tensor, name: str, config: GPT2Config, *, out_in: bool) -> Tensor:
    value = value.detach().float()
    if name == "embed.tokens.weight":
        return with_padding(value, config.padded_vocab)
    value = value.T if _is_matrix(name) and not out_in else value
    if ".qkv." in name:
        value = value.unflatten(0, (3, config.n_heads, -1)).transpose(0, 1).flatten(0, 2)
    return value.contiguous()


def _to_theirs(value: Tensor, name: str, config: GPT2Config) -> Tensor:
    value = value.detach().float()
    if name == "embed.tokens.weight":
        return value[: config.vocab_size]
    if ".qkv." in name:
        value = value.unflatten(0, (config.n_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    return value.T if _is_matrix(name) else value


def _is_matrix(name: str) -> bool:
    return name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name
