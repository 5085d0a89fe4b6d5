"""AdamW whose moments are kept in 8 bits (Dettmers et al. 2022, arXiv:2110.02861), by the package torchao.

A moment is cut into blocks of 256 numbers that follow each other in memory. Of a block its largest magnitude is kept
in fp32, and of each number which of 256 fixed values is nearest to its share of that. The update itself is in fp32. A
rank cuts what it updates: its piece of a parameter. Where a piece does not begin with a block of the whole parameter,
its blocks hold other numbers than those of one process, and round them otherwise.

Pieces of less than 4,096 numbers, and those that blocks do not divide, have moments in fp32.
"""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from paralab.console.quiet import quiet
from paralab.errors import ConfigError
from paralab.options.choices import EngineName
from paralab.options.config import RunConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NAME: Final = "adamw8bit"
BLOCK = 256  # numbers that share a scale: the default of torchao's AdamW8bit
LEAST = 4096  # numbers of the smallest tensor in 8 bits: torchao 0.18, optim/adam.py, _AdamBase._new_buffer
BYTES = 1 + 4 / BLOCK  # of a number in 8 bits: its code, and its share of a scale
VALUES = 256  # that a code stands for; each moment has a table of them, in fp32
SCALE_BYTES = VALUE_BYTES = 4


def check(run: RunConfig, engine: EngineName) -> None:
    """Raise ConfigError where a run asks for moments in 8 bits and cannot have them."""
    if run.optimizer != NAME:
        return
    if engine != "torch":
        raise ConfigError(
            f"--optimizer {NAME} with --engine {engine}, which updates flat tensors or sharded ones of its own: use "
            "--engine torch, or --optimizer adamw"
        )
    if run.precision == "fp64":
        raise ConfigError(f"--optimizer {NAME} with --precision fp64: it computes in fp32, use fp32, bf16 or fp16")
    if find_spec("torchao") is None:
        raise ConfigError(
            f"--optimizer {NAME} needs a package: pip install 'paralab[optim8bit]', or use --optimizer adamw"
        )


def is_packed(numel: int) -> bool:
    """Return whether the moments of a piece of so many numbers are kept in 8 bits."""
    return numel >= LEAST and numel % BLOCK == 0


def moment_bytes(numel: int, element: int) -> int:
    """Return the bytes of one moment of a piece of so many numbers. element: bytes of a number that is not packed."""
    return numel + numel // BLOCK * SCALE_BYTES + VALUES * VALUE_BYTES if is_packed(numel) else numel * element


def make(groups: list[dict[str, Any]], run: RunConfig) -> "torch.optim.Optimizer":
    """Return the optimizer over groups of parameters, of any shape. It is compiled where the blocks of the model are.

    torchao compiles the update of each shape; `--compile none` runs the same operations one by one, and so does a step
    in which memory or bytes are counted.
    """
    import torch
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    with quiet():
        from torchao.optim import AdamW8bit
        from torchao.optim.subclass_8bit import get_qmap_signed, get_qmap_unsigned
    get_qmap_signed(), get_qmap_unsigned()  # made now, with values: a dry run has none later

    class AsCompiled(AdamW8bit):
        """torchao's optimizer; `run.compile` says whether its update is compiled."""

        def step(self, closure: Any = None) -> Any:
            if run.compile != "none" and _get_current_dispatch_mode() is None:  # beside which nothing is compiled
                return super().step(closure)
            with torch.compiler.set_stance("force_eager"):
                return super().step(closure)

    AsCompiled.__name__ = AdamW8bit.__name__
    return AsCompiled(groups, lr=run.learning_rate, betas=run.betas, eps=run.eps, block_size=BLOCK)


def is_in_eight_bits(state: "Tensor") -> bool:
    """Return whether a state of an optimizer, of any shape, is kept in 8 bits."""
    return all(hasattr(state, name) for name in ("codes", "scale", "qmap"))


def unpack(state: Any) -> "Tensor":
    """Return the numbers that a state in 8 bits stands for: of its shape, fp32, in the memory of the host."""
    return state.to("cpu").dequantize()


def pack(values: "Tensor", *, signed: bool, device: "torch.device") -> "tuple[Tensor, int]":
    """Return a state in 8 bits with these numbers, on a device, and how many of its blocks had to be rounded.

    values: fp32, of any shape. signed: whether it is the first moment. Numbers that a state stood for, in the same
    blocks, are met exactly and none is rounded. The largest number of a block is the scale times one of the two
    outermost values, so the scale follows from it but for its last digit, of which three are tried.
    """
    import torch
    from torchao.optim.quant_utils import quantize_8bit_with_qmap
    from torchao.optim.subclass_8bit import OptimState8bit

    state: Any = OptimState8bit.zeros(values.shape, signed, BLOCK, values.device, dtype=torch.float32)
    blocks, table = values.reshape(-1, BLOCK), state.qmap  # (blocks, 256), (256,)
    largest = blocks.abs().amax(1, keepdim=True)  # (blocks, 1)
    least = torch.full_like(largest, float("inf"))
    scales, codes = largest, state.codes.view(-1, BLOCK)
    for outermost in {float(table[-1]), float(table[0].abs())} - {0.0}:
        near = largest / outermost
        for scale in (near, *(torch.nextafter(near, torch.full_like(near, to)) for to in (0.0, float("inf")))):
            found = quantize_8bit_with_qmap(blocks / scale.clamp(min=torch.finfo(scale.dtype).tiny), table)
            error = (table[found.int()] * scale - blocks).abs().amax(1, keepdim=True)  # (blocks, 1)
            scales, codes = torch.where(error < least, scale, scales), torch.where(error < least, found, codes)
            least = torch.minimum(least, error)
    state.codes.copy_(codes.view(values.shape))
    state.scale.copy_(scales.flatten())
    return state.to(device), int((least > 0).sum())


SIGNED = {"exp_avg": True, "exp_avg_sq": False}  # the moments, by the name of the state


def pack_states(states: "Iterable[dict[str, Any]]", device: "torch.device") -> tuple[int, int]:
    """Put moments, fp32 of any shapes, into 8 bits where a step keeps them so; return blocks rounded, and all blocks.

    states: of each piece, by name, changed in place.
    """
    rounded = blocks = 0
    for state in states:
        for name, signed in SIGNED.items():
            if name in state and is_packed(state[name].numel()):
                state[name], more = pack(state[name], signed=signed, device=device)
                rounded, blocks = rounded + more, blocks + state[name].numel() // BLOCK
    return rounded, blocks


def counted(states: "Iterable[dict[str, Any]]") -> tuple[int, int]:
    """Return how many numbers of moments, of any shapes, are in 8 bits, and how many there are. states: of pieces."""
    moments = [state[name] for state in states for name in SIGNED if name in state]
    return sum(x.numel() for x in moments if is_in_eight_bits(x)), sum(x.numel() for x in moments)


def columns(run: RunConfig, moments: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Return the column about how much is in 8 bits, of a run that asks for it. moments: of each rank, as counted."""
    every = sum(numbers for _, numbers in moments)
    if run.optimizer != NAME or not every:
        return {}
    return {"optimizer_8bit_share": sum(packed for packed, _ in moments) / every}
