"""The forward pass that strategies call on a model of transformers, and what a pipeline stage of it is.

Nothing of the model is rewritten. Its `forward` is called with tokens, or in a later stage with the hidden states of
the stage before as `inputs_embeds`. What a stage does not hold is replaced by a module without parameters that hands on
what it is given, so that the names of the others do not change. Whether that computes what the whole model computes is
a property of its architecture: `paralab.models.hugging_face.proof` looks.
"""

from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from paralab.models.found import around
from paralab.models.hugging_face import mixture
from paralab.models.hugging_face.sequence import own_positions, sharing
from paralab.models.hugging_face.wide import keep_wide
from paralab.models.spec import Cut, StandIn, at_least_fp32

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def wrapped(model: "PreTrainedModel") -> "PreTrainedModel":
    """Give a model, in place, the `forward(tokens, targets=None)` of `paralab.models.spec`; return it."""
    _leave_values_alone(model)
    model.stage_is_last = True  # an attribute of ours
    sharing(model)
    mixture.prepare(model)
    keep_wide(_with_casts(model))
    model.forward = MethodType(_forward, model)  # a method, so that a copy of the model calls its own
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a model, changed in place, whose `forward` is that of transformers again."""
    for name in ("forward", "stage_is_last", "block_names", "take", "ranks", "share_sequence", "mixtures", "n_experts"):
        vars(model).pop(name, None)
    model._modules.pop("whole", None)
    for module in _with_casts(model):
        vars(module).pop("forward", None)
    return model


def _with_casts(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model, and what it has beside them that has weights: the final norm."""
    base: Any = getattr(model, "base_model", model)
    parts = [part for child in base.children() for part in (child if isinstance(child, nn.ModuleList) else (child,))]
    return [part for part in parts if not isinstance(part, nn.Embedding)]


def _forward(
    self: Any, hidden: Tensor, routed: Tensor | None = None, *, targets: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the mean loss () in fp32 over all tokens, or without targets what follows from the input.

    hidden: tokens (batch, sequence) int64, or the hidden states (batch, sequence, width) of the stage before. targets:
    the token after each, (batch, sequence) int64. What follows: logits (batch, sequence, vocabulary), or hidden states
    where this is a stage that is not the last. Of a sequence that ranks share, all are those of this rank's positions.
    routed: where a mixture's tokens went in the stages before, which a stage that is not the last returns as well.
    """
    is_first = not hidden.is_floating_point()
    hidden = self.take(hidden, 1) if is_first else hidden
    given = {"input_ids" if is_first else "inputs_embeds": hidden, "use_cache": False}
    if self.ranks > 1:
        given["position_ids"] = own_positions(self, hidden)
    if not self.stage_is_last:
        out = self.base_model(**given).last_hidden_state
        out = out.clone() if out._is_view() else out  # schedules detach it in place, which a view does not allow
        return (out, _routed(self, out, routed)) if self.mixtures else out
    logits = type(self).forward(self, **given).logits
    if self.mixtures:
        routed = _routed(self, logits, routed)
    if targets is None:
        return logits
    loss = F.cross_entropy(at_least_fp32(logits).flatten(0, 1), self.take(targets, 1).flatten())
    return loss if routed is None or not self.training else loss + mixture.balance_loss(self, routed)


def _routed(self: Any, out: Tensor, before: Tensor | None) -> Tensor:
    """Return where tokens went so far (batch, 2, experts), with those of the stages before. out: (batch, seq, ...)."""
    here = mixture.loads_and_probabilities(self, out)
    return here if before is None else before + here


def cut_stage(model: nn.Module, *, blocks: tuple[str, ...], cut: Cut) -> nn.Module:
    """Cut a whole model, in place, to one stage of a pipeline, and return it. blocks: full names of all its blocks."""
    stage: Any = model
    stage.stage_is_last = cut.last
    for number, name in enumerate(blocks):
        if number not in cut.blocks:
            _replace(stage, name, _HandOn())
    embedding = stage.get_input_embeddings()
    first, last = around(stage, blocks)
    for name in (() if cut.first else first) + (() if cut.last else last):
        module = stage.get_submodule(name)
        # of what has no weights, as a table of angles, each stage has its own, but of norms
        if any(True for _ in module.parameters()) or "norm" in type(module).__name__.lower():
            # positions were added by the first stage: nothing is left to add
            positions = isinstance(module, nn.Embedding) and module is not embedding
            _replace(stage, name, _NoPositions() if positions else _HandOn())
    return stage


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    container, _, key = name.rpartition(".")
    model.get_submodule(container)._modules[key] = module


class _HandOn(StandIn):
    """Stands where another stage has a module: returns its first input, of any shape."""

    def forward(self, hidden: Tensor, *others: Any, **named: Any) -> Tensor:
        return hidden


class _NoPositions(StandIn):
    """Stands where the first stage has a table of positions: returns nothing to add."""

    def forward(self, *others: Any, **named: Any) -> Tensor:
        return torch.zeros(())


def _leave_values_alone(model: nn.Module) -> None:
    """Keep a model from looking at the values of its inputs: there are none on the meta device."""
    from transformers import PreTrainedModel, masking_utils

    for module in model.modules():
        if isinstance(module, PreTrainedModel):  # whether there is padding: there is none
            module.warn_if_padding_and_no_attention_mask = _nothing
    if not isinstance(masking_utils.find_packed_sequence_indices, _OnValues):
        looks: Any = masking_utils.find_packed_sequence_indices
        masking_utils.find_packed_sequence_indices = _OnValues(looks)


def _nothing(*_: Any, **__: Any) -> None:
    return None


class _OnValues:
    """A function of transformers that reads the values of a tensor, and returns None where there are none."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, tensor: Tensor, *others: Any, **named: Any) -> Any:
        has_values = tensor.device.type != "meta" and not isinstance(tensor, FakeTensor)
        return self.function(tensor, *others, **named) if has_values else None
