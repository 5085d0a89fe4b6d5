"""What a `ModelSpec` of a user's own says, looked at before it is used: its fields, and the module that it builds."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from paralab.errors import ModelError

if TYPE_CHECKING:
    from paralab.models.spec import ModelSpec

_VALUES = {  # fields that hold no function: what they hold where they are not None
    "name": str,
    "sizes": Mapping,
    "custom_form": str,
    "default_size": str,
    "tiny_size": str,
    "first": tuple,
    "last": tuple,
    "experts": str,
    "sequence_parallel": bool,
    "smooth": bool,
    "whole_batch": bool,
    "tied": Mapping,
    "refuses": Mapping,
}


def check_fields(spec: "ModelSpec[Any]") -> None:
    """Raise ModelError for a field of another kind than it is declared as, and for a name that is not one line."""
    for field in fields(spec):
        value = getattr(spec, field.name)
        if value is None and field.default is None:
            continue
        kind = _VALUES.get(field.name)
        if kind is None and not callable(value):
            needed = f"a function is needed, such as {field.name}=lambda config: ..."
        elif kind is not None and not isinstance(value, kind):
            needed = f"a {kind.__name__.lower()} is needed"
        else:
            continue
        raise ModelError(f"ModelSpec {spec.name} has a {type(value).__name__} as {field.name}: {needed}")
    if not spec.name.strip() or not spec.name.isprintable():
        raise ModelError(f"a ModelSpec is called {spec.name!r}: a name in one line is needed")


def check_module(name: str, model: Any) -> None:
    """Raise ModelError for what is no module, and for parameters that cannot be trained or cut.

    model: on the meta device.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"build of {name} returns a {type(model).__name__}: an nn.Module is needed")
    for part in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(part[1], (UninitializedParameter, UninitializedBuffer)):
            raise ModelError(
                f"{part[0]} of {name} has no shape before the first batch: use nn.Linear in place of "
                "nn.LazyLinear, and so on, with the sizes"
            )
    for parameter_name, parameter in model.named_parameters():
        if problem := _problem(parameter):
            raise ModelError(f"parameter {parameter_name} of {name} {problem}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"{name} has no parameter that is trained: at least one with requires_grad is needed")


def _problem(parameter: Tensor) -> str:
    if parameter.is_complex():
        return "is complex: keep its real and imaginary part as two, and join them in forward (torch.complex)"
    if not parameter.is_floating_point():
        return f"is of {parameter.dtype}, which is not trained: register it as a buffer"
    return "has no elements: leave it out" if parameter.numel() == 0 else ""


def check_loss(loss: Any, name: str) -> Tensor:
    """Return what forward gave for a batch with targets. Raises: ModelError unless it is a mean loss () to train on."""
    got = ""
    if not isinstance(loss, Tensor):
        got = f"a {type(loss).__name__}"
    elif loss.shape != ():
        got = f"a tensor of shape {tuple(loss.shape)}"
    elif not loss.requires_grad:
        got = "a number that no parameter has led to"
    if got:
        raise ModelError(
            f"forward of {name} returns {got} where it is given targets: the mean loss of shape () is needed"
        )
    return loss
