"""Mixtures of experts of transformers: products of any dtype, and the loss that keeps the loads of experts even.

transformers takes that loss (Switch Transformer, Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6) over all tokens
of a batch and all layers. A product of two means over a batch is no mean over its samples, so here it is taken over
each sequence, and its mean over sequences is added to the cross entropy in training. For one sequence it is theirs.
Mixtures for which transformers has no such loss (DeepSeek V3) are trained as there: by the cross entropy alone.
"""

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab.models.cross_entropy import local
from paralab.models.routing import choices, sizes_of
from paralab.models.sequence import Whole
from paralab.models.spec import at_least_fp32

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "paralab"  # in their registry of what multiplies by experts
_OF_EXPERTS = re.compile("expert|router", re.IGNORECASE)  # in the name of a module or of its class
_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_k")  # what configurations call the experts of a token


def described(model: nn.Module) -> str:
    """Return which module of a model holds experts, or chooses among them, and what it is; empty where none does."""
    kinds = ((name, type(module).__name__) for name, module in model.named_modules())
    return next((f"{name} is a {kind}" for name, kind in kinds if _OF_EXPERTS.search(f"{name} {kind}")), "")


def experts_of(model: nn.Module) -> dict[str, Any]:
    """Return the modules, by name, that transformers calls with tokens, their experts and weights, in one form."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "_is_expert_parallel")}


def pattern_of(model: nn.Module) -> str | None:
    """Return the fnmatch pattern of the modules that hold experts; None where there are none, or they differ."""
    patterns = {re.sub(r"\.\d+\.", ".*.", name) for name in experts_of(model)}
    return patterns.pop() if len(patterns) == 1 else None


def problem(model: "PreTrainedModel") -> str:
    """Return why a model with experts cannot be trained here; empty where it can, or has none."""
    if not described(model):
        return ""
    held = [name.rpartition(".")[0] for name in experts_of(model)]
    if not held:
        return "transformers computes its experts in a way of their own"
    if experts_per_token(model) is None:
        return f"its configuration has no {' or '.join(_PER_TOKEN)} that is one number for all layers"
    choosing = [name.rpartition(".")[0] for name in _routers(model)]
    if balance_coefficient(model) is not None and sorted(held) != sorted(choosing):
        return "not every layer of experts has a router of its own"
    return ""


def balance_coefficient(model: "PreTrainedModel") -> float | None:
    """Return what transformers multiplies the balance loss by; None where it has no such loss for a model."""
    coefficient = getattr(model, "router_aux_loss_coef", None)  # a configuration may have one that no loss reads
    return float(coefficient) if isinstance(coefficient, float | int) and _routers(model) else None


def experts_per_token(model: "PreTrainedModel") -> int | None:
    """Return how many experts a token meets in a layer; None where the configuration has no one number."""
    found = (getattr(model.config, name, None) for name in _PER_TOKEN)
    return next((each for each in found if isinstance(each, int)), None)


def prepare(model: "PreTrainedModel") -> None:
    """Have a model, in place, note where its tokens go, and multiply by its experts as `_by_expert` does."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    owned: Any = model
    owned.mixtures = 0  # layers of the whole model that have a balance loss, whichever of them a stage keeps
    held = experts_of(model)
    if not held or problem(model):
        return
    owned.n_experts = len(next(iter(held.values())).down_proj)
    for router in _routers(model).values():
        router.experts_chosen = partial(_chosen, owned.n_experts)
    if balance_coefficient(model) is not None:
        _balance(owned)
    if _NAME not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(_NAME, _by_expert)
    for experts in held.values():
        experts.config._experts_implementation = _NAME


def _balance(model: Any) -> None:
    """Have the routers of a model, in place, note the scores that its balance loss is made of."""
    routers = _routers(model)
    model.mixtures = len(routers)
    model.whole = Whole()
    index = model._can_record_outputs["router_logits"].index
    for router in routers.values():
        router.register_forward_hook(partial(_note, index))


def loads_and_probabilities(model: Any, out: Tensor) -> Tensor:
    """Return what routers made of the last forward pass, of which `out` (batch, seq, ...) came: (batch, 2, experts).

    For each sequence and expert: the share of choices that are this expert, times the experts of a token, and its mean
    probability, of the positions of this rank. Both are terms of means over all layers of the model, of which a stage
    may have none.
    """
    noted = [vars(module).pop("routed") for module in model.modules() if "routed" in vars(module)]
    if not noted:
        return at_least_fp32(out.new_zeros(len(out), 2, model.n_experts))
    logits = at_least_fp32(torch.stack(noted, dim=-2))  # (batch x seq, layers, experts)
    probabilities = logits.softmax(dim=-1).unflatten(0, (len(out), -1))
    chosen = probabilities.topk(model.config.num_experts_per_tok, dim=-1).indices
    chosen = model.whole(chosen.flatten(2))  # of the whole sequence, of which this rank may have a part
    means = probabilities.sum(dim=2).mean(dim=1) / model.mixtures
    counts = choices(chosen.flatten(1), logits.shape[-1]).to(means.dtype)  # divided as they are they would be in fp32
    return torch.stack((counts / (chosen.shape[1] * model.mixtures), means), dim=1)


def balance_loss(model: Any, routed: Tensor) -> Tensor:
    """Return the mean () over sequences of the loss, by its coefficient, of `loads_and_probabilities` of all layers."""
    loads, means = routed.unbind(1)
    return model.config.router_aux_loss_coef * routed.shape[-1] * (loads * means).sum(dim=-1).mean()


def active_share(model: "PreTrainedModel") -> dict[int, float]:
    """Return the share of a parameter, by id, that a token meets, of those of experts."""
    met = experts_per_token(model) or 0
    return {id(p): met / len(p) for module in experts_of(model).values() for p in module.parameters()}


def _routers(model: Any) -> dict[str, Any]:
    """Return the modules, by name, whose scores transformers records."""
    recorder = (getattr(model, "_can_record_outputs", None) or {}).get("router_logits")
    kind = getattr(recorder, "target_class", None)
    return {name: module for name, module in model.named_modules() if kind is not None and isinstance(module, kind)}


def _note(index: int, module: nn.Module, inputs: Any, out: Any) -> None:
    """Keep the scores (batch x seq, experts) of a router until the pass has ended."""
    vars(module)["routed"] = out[index]


def _chosen(n_experts: int, out: Any) -> tuple[Tensor, int]:
    """Return the experts (batch x seq, top_k), all that is no fraction of what a router returns; how many there are."""
    return next(each for each in out if not each.is_floating_point()), n_experts


def _by_expert(self: Any, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of what its experts make of each token (tokens, hidden): their interface.

    chosen, weights: (tokens, top_k). Rows are sorted by expert; how many experts there are is read from the weights.
    """
    top_k = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)
    sizes = sizes_of(choices(chosen.flatten(), len(self.down_proj)), len(order))
    up = "gate_up_proj" if self.has_gate else "up_proj"
    parts = zip(tokens[order // top_k].split(sizes), _layers(self, up), _layers(self, "down_proj"), strict=True)
    out = torch.cat([_expert(self, rows, first, second) for rows, first, second in parts])
    by_token = torch.zeros_like(out).index_copy(0, order, out).unflatten(0, (-1, top_k))
    return (by_token * weights[..., None]).sum(dim=1).to(tokens.dtype)


def _layers(module: Any, name: str) -> list[tuple[Tensor, Tensor | None]]:
    """Return weight (out, in) and bias of each expert."""
    weights = local(getattr(module, name)).unbind()
    biases = local(getattr(module, f"{name}_bias")).unbind() if module.has_bias else [None] * len(weights)
    return [(weight.T if module.is_transposed else weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def _expert(module: Any, rows: Tensor, up: tuple[Tensor, Tensor | None], down: tuple[Tensor, Tensor | None]) -> Tensor:
    hidden = F.linear(rows, *up)
    out = F.linear(module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden), *down)
    return module.post_expert_norm(out) if module.has_post_expert_norm else out
