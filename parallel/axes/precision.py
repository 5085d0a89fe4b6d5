"""Precisions: fp32; bf16 and fp16, in which matrices are multiplied while weights stay fp32; fp64, for parity."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paralab.options.choices import Precision

DTYPES: Mapping[Precision, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def weight_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of parameters, optimizer states and losses."""
    return torch.float64 if precision == "fp64" else torch.float32


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a floating-point tensor of any shape in a dtype, and any other as it is."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def cast(part: nn.Module, inputs: tuple[Tensor, ...], precision: Precision) -> tuple[Tensor, ...]:
    """Have a part compute in a precision as FSDP does: cast its weights, and return what enters it, of any shapes."""
    part.to(DTYPES[precision])
    return tuple(in_dtype(x, DTYPES[precision]) for x in inputs)


def autocast_forward(part: nn.Module, *, device_type: str, precision: Precision) -> None:
    """Run a part's forward in a lower precision; what it returns (loss, or what the next stage gets) is fp32."""
    forward = part.forward

    def forward_in_precision(*args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, ...]:
        with torch.autocast(device_type, dtype=DTYPES[precision]):
            out = forward(*args, **kwargs)
        return tuple(x.float() for x in out) if isinstance(out, tuple) else out.float()

    part.forward = forward_in_precision
