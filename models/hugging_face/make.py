"""A `ModelSpec` of a model of transformers."""

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from paralab.models import HUGGING_FACE, label_of
from paralab.models.hugging_face import folder, mixture, plan, proof
from paralab.models.hugging_face.config import CausalLMConfig, dropouts, new_model, with_values
from paralab.models.hugging_face.sequence import shape_of
from paralab.models.hugging_face.smaller import n_layers, tiny, with_layers
from paralab.models.hugging_face.stages import cut_stage, wrapped
from paralab.models.spec import Cut, Flops, ModelSpec, Style, WithoutInit
from paralab.models.structure import find_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def spec_of(name: str) -> ModelSpec[CausalLMConfig]:
    """Return the spec of a folder, of a GGUF file, or of a model of the hub by name.

    Its sizes: `full`, that of the configuration, and `tiny`, a small one of the same architecture, where it is smaller.
    Raises: ConfigError when there is no configuration, or none of a decoder-only model that can be trained here.
    """
    full = folder.read(name)
    small = tiny(full)
    return ModelSpec(
        name=label_of(f"{HUGGING_FACE}{name}"),
        sizes={"full": full} | ({"tiny": small} if small != full else {}),
        default_size="full",
        tiny_size="tiny" if small != full else "full",
        build=lambda config: wrapped(new_model(config)),
        example=example,
        block_names=block_names,
        cut=cut,
        with_blocks=lambda config, n: with_layers(config, min(n, n_layers(config))),
        flops=flops,
        data=lambda config: "alice",
        # where two experts have the same probability, the last bit chooses
        smooth="relu" not in _activation(full) and not mixture.experts_of(_on_meta(full)),
        experts=mixture.pattern_of(_on_meta(full)),
        tensor_plan=tensor_plan,
        tensor_divides=tensor_divides,
        sequence=shape_of,
        cannot=cannot,
        notes=notes,
    )


@lru_cache(maxsize=32)
def block_names(config: CausalLMConfig) -> tuple[str, ...]:
    """Return the full names of the decoder layers; () where they are not found as one list."""
    found = find_blocks(_on_meta(config))
    return found if len(found) == n_layers(config) else ()


def cut(config: CausalLMConfig, model: nn.Module, cut: Cut) -> nn.Module:
    """Cut a whole model, in place, to one stage of a pipeline, and return it."""
    return cut_stage(model, blocks=block_names(config), cut=cut)


@lru_cache(maxsize=32)
def tensor_plan(config: CausalLMConfig) -> Mapping[str, Style]:
    """Return how tensor ranks share the layers; {} where transformers has no plan, or one that is not followed here."""
    model = _on_meta(config)
    return plan.our_plan(config.theirs, model.base_model_prefix, dict(model.named_modules()))


def tensor_divides(config: CausalLMConfig) -> Mapping[str, int]:
    """Return what the number of tensor ranks has to divide beside the layers, by name."""
    return plan.divides(config.theirs, tensor_plan(config))


def cannot(config: CausalLMConfig, axis: str) -> str:
    """Return why the pipeline axis "pp", the tensor axis "tp" or the context axis "cp" cannot split a model, or ""."""
    if axis == "pp" and (reason := proof.stage_problem(config, block_names)):
        return f"{reason}; use ddp, a ZeRO stage or hsdp" + ("" if cannot(config, "tp") else ", or tensor")
    if axis == "tp":
        return _no_tensor(config)
    if axis == "cp" and (reason := proof.sequence_problem(config)):
        return f"{reason}; use a layout without cp"
    return ""


def _no_tensor(config: CausalLMConfig) -> str:
    model = _on_meta(config)
    reason = plan.problem(config.theirs, model.base_model_prefix, dict(model.named_modules()))
    odd = next((name for name, n in tensor_divides(tiny(config)).items() if n % 2), None)
    if not reason and odd:
        reason = f"its {odd} would have to be divided, and two ranks cannot divide {getattr(config.theirs, odd)}"
    reason = reason or proof.tensor_problem(config, tensor_plan)
    if not reason:
        return ""
    if config.theirs.model_type == "gpt2":
        return f"{reason}; use another strategy, or --model gpt2 --init-from FOLDER, which has its tensor plan built in"
    return f"{reason}; use ddp, a ZeRO stage, hsdp or pipeline"


def _activation(config: CausalLMConfig) -> str:
    names = ("hidden_act", "hidden_activation", "activation_function")
    return next((str(said) for name in names if (said := getattr(config.theirs, name, None))), "")


def notes(config: CausalLMConfig) -> tuple[str, ...]:
    """Return what a run does otherwise than the configuration says, or than one may expect."""
    said = []
    if config.dropout:
        names = ", ".join(f"{name}={p:g}" for name, p in dropouts(with_values(config)).items())
        said.append(f"the dropout of its configuration is not used ({names}): layouts would draw other random numbers")
    if Path(config.tokenizer).name == "tokenizer.json":
        said.append(f"texts are encoded with {config.tokenizer}")
    else:
        said.append(f"texts are encoded as {config.tokenizer}: there is no tokenizer.json in its folder")
    model = _on_meta(config)
    if mixture.experts_of(model):
        coefficient = mixture.balance_coefficient(model)
        said.append(
            "transformers has no loss that keeps the loads of its experts even, and none is added: expert_imbalance in "
            "a row says how uneven they are"
            if coefficient is None
            else f"the balance loss of its experts (router_aux_loss_coef={coefficient:g}) is that of each sequence, "
            "not of a batch, and is added in training"
        )
    return tuple(said)


def _on_meta(config: CausalLMConfig) -> "PreTrainedModel":
    with torch.device("meta"), WithoutInit():
        return new_model(config)


def example(config: CausalLMConfig, batch_size: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return zeros in the form of a batch: ((tokens,), targets), both (batch, seq_len) int64."""
    tokens = torch.zeros(batch_size, config.seq_len, dtype=torch.int64)
    return (tokens,), tokens


def flops(config: CausalLMConfig) -> Flops:
    """Count 6 N + 12 L H S a token, attention in full (PaLM, Chowdhery et al. 2022, appendix B).

    N counts the matrices of the blocks and of the output layer, of experts those that a token meets.
    """
    theirs = config.theirs
    model = _on_meta(config)
    embedding = model.get_input_embeddings()
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    shares = mixture.active_share(model)
    named = ((p, shares.get(id(p), 1)) for p in model.parameters() if p.dim() > 1 and id(p) not in tables)
    matrices = sum(p.numel() * share for p, share in named)
    head = model.get_output_embeddings()
    if head is not None and head.weight is embedding.weight:
        matrices += prod(embedding.weight.shape)
    attention = 12 * theirs.num_hidden_layers * theirs.hidden_size * config.seq_len
    return Flops(per_sample=float(config.seq_len * (6 * matrices + attention)), formula="6N+12LHS")
