"""Activation checkpointing: keep the input of a block and recompute its activations in backward (Chen et al. 2016).

Selective recomputation does so with the core of attention alone (Korthikanti et al. 2022, section 5): scores, softmax
and their product with the values, whose activations are many and cheap to compute. Where one kernel computes all of it
and keeps no scores, what is saved is its output.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from paralab.axes.blocks import blocks_of
from paralab.errors import ConfigError
from paralab.layout import Layout
from paralab.models.configs import C
from paralab.models.sequence import Attend
from paralab.models.spec import ModelSpec
from paralab.models.structure import has_batch_norm
from paralab.options.config import RunConfig


def recompute(part: nn.Module, checkpointing: str, *, random: bool = False) -> None:
    """Have backward recompute what `--checkpointing` says, in place: blocks, or attention alone.

    random: whether that draws random numbers, which recomputing has to draw again.
    """
    if checkpointing == "selective":
        for module in attention_of(part):
            module.forward = functools.partial(_recomputed, module.forward, {"preserve_rng_state": random})
    elif checkpointing not in ("none", "offload"):
        checkpoint_blocks(part, 1 if checkpointing == "full" else int(checkpointing), random=random)


def attention_of(part: nn.Module) -> list[nn.Module]:
    """Return the modules of a model, or a part of it, that compute the core of attention: `Attend`."""
    return [module for module in part.modules() if isinstance(module, Attend)]


def checkpoint_blocks(part: nn.Module, every: int | None, *, random: bool = False) -> None:
    """Recompute every n-th block in backward (1: all of them; None: no block). Parameter names stay.

    random: whether blocks draw random numbers, which recomputing has to draw again.
    """
    for number, block in blocks_of(part).items():
        if every and number % every == 0:
            # Replacing forward, not wrapping the module, keeps names and lets FSDP's hooks run outside.
            options = {"preserve_rng_state": random} | _contexts(block)
            block.forward = functools.partial(_recomputed, block.forward, options)


def offload_activations(part: nn.Module, *, pinned: bool) -> None:
    """Keep what backward needs of each block in the memory of the host. pinned: whether that is page-locked."""
    for block in blocks_of(part).values():
        block.forward = functools.partial(_kept_on_host, block.forward, pinned)


def check_compiled(run: RunConfig, layout: Layout, spec: ModelSpec[C], config: C) -> None:
    """Raise ConfigError where torch.compile (2.13) cannot compile blocks, or cannot where they are recomputed too.

    The backward pass of a compiled block is one piece, which computes the gradients of weights with those of inputs. It
    takes none of the contexts that keep a recomputed forward pass from counting its batch again, and saves the mesh
    of layers that are split over tensor ranks as if that were a tensor.
    """
    if run.compile == "none":
        return
    if layout.schedule and layout.pipeline.splits_backward:
        raise ConfigError(
            f"--compile {run.compile} with {layout.schedule}, which takes the gradients of weights in passes of their "
            "own: the backward pass of a compiled block is one piece, use 1f1b or interleaved, or leave --compile out"
        )
    if run.checkpointing in ("none", "offload"):
        return
    both = f"--compile {run.compile} with --checkpointing {run.checkpointing}"
    if layout.tp > 1:
        raise ConfigError(f"{both} over tensor ranks: torch cannot compile the two together, leave one of them out")
    if has_batch_norm(spec.on_meta(config)):
        raise ConfigError(
            f"{both}: compiled, the batch norm of {spec.name} would count each batch twice; use another norm, such as "
            "--norm group, or leave one of the two out"
        )


def check_attention(run: RunConfig, layout: Layout, spec: ModelSpec[C], config: C) -> None:
    """Raise ConfigError where attention alone is to be recomputed, and there is none, or other ranks have its keys."""
    if run.checkpointing != "selective":
        return
    if not attention_of(spec.on_meta(config)):
        raise ConfigError(
            f"--checkpointing selective recomputes attention, and {spec.name} has no module of paralab.models.sequence."
            "Attend: use --checkpointing full, which recomputes whole blocks, or leave it out"
        )
    if layout.cp > 1:
        raise ConfigError(
            f"--checkpointing selective with {layout}, whose ranks exchange keys in attention and would do so again: "
            "use --checkpointing full, or a layout without cp"
        )


def is_offloaded(block: nn.Module) -> bool:
    """Return whether what backward needs of a block is kept in the memory of the host."""
    return getattr(block.forward, "func", None) is _kept_on_host


def _kept_on_host(forward: Callable[..., Any], pinned: bool, *inputs: Any, **named: Any) -> Any:
    with torch.autograd.graph.save_on_cpu(pin_memory=pinned):
        return forward(*inputs, **named)


def is_recomputed(block: nn.Module) -> bool:
    """Return whether a block is recomputed in backward: by `checkpoint_blocks`, or wrapped by torch's own wrapper."""
    return _is_ours(block) or any(isinstance(module, CheckpointWrapper) for module in block.modules())


def recomputed_attention(part: nn.Module) -> int:
    """Return how many modules of a part that compute the core of attention are recomputed by themselves."""
    return sum(map(_is_ours, attention_of(part)))


def _is_ours(module: nn.Module) -> bool:
    return getattr(module.forward, "func", None) is _recomputed


def recomputation_ratio(spec: ModelSpec[C], config: C, checkpointing: str) -> float:
    """Return the FLOPs of forward and backward with recomputation over those without: 1 where nothing is recomputed.

    Counted from the matrix products and convolutions of one sample, on the meta device. Recomputing ends at the
    last tensor that backward needs, so it is a little less than the forward pass of the blocks.
    """
    if checkpointing in ("none", "offload"):
        return 1.0
    return _flops(spec, config, checkpointing) / _flops(spec, config, "none")


def _flops(spec: ModelSpec[C], config: C, checkpointing: str) -> int:
    model = spec.on_meta(config)
    recompute(model, checkpointing)
    inputs, _ = spec.example(config, 1)
    with FlopCounterMode(display=False) as counter:
        # Without targets: the output layer is the same product, and what comes after it is none.
        model(*(x.to("meta") for x in inputs)).sum().backward()
    return counter.get_total_flops()


def _recomputed(forward: Callable[..., Any], options: Mapping[str, Any], *inputs: Any, **named: Any) -> Any:
    # Views, because a schedule that splits backward detaches, in place, what a stage returned, and that may be a tensor
    # it received: recomputed from the tensor itself, the block would lose the gradient to it.
    return checkpoint(
        forward,
        *(x.view_as(x) if isinstance(x, Tensor) else x for x in inputs),
        use_reentrant=False,
        **options,
        **named,
    )


def _contexts(block: nn.Module) -> dict[str, Any]:
    """Return what forward and recomputation of a block run in; torch.compile wants it left out where it is nothing."""
    if not has_batch_norm(block):
        return {}
    return {"context_fn": lambda: (contextlib.nullcontext(), _StatisticsFrozen(block))}


class _StatisticsFrozen:
    """Keep running statistics from counting a micro-batch twice. Zero-bubble schedules enter it twice.

    A momentum of zero leaves them as they are, and the recomputed graph saves the tensors that the first one did.
    """

    def __init__(self, block: nn.Module) -> None:
        norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
        counts = [(norm, norm.num_batches_tracked) for norm in norms]
        self.kept = [(norm, norm.momentum, count) for norm, count in counts if count is not None]

    def __enter__(self) -> None:
        for norm, _, count in self.kept:
            norm.momentum, norm.num_batches_tracked = 0.0, count.clone()

    def __exit__(self, *exception: object) -> None:
        for norm, momentum, count in self.kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
