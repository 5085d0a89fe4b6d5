"""Tensor parallelism: each layer is split over ranks (Megatron-LM, Shoeybi et al. 2019, section 3).

The model's plan names a style for each module. Linear layers, embeddings and norms use torch's DTensor styles;
convolutions and norms over split channels run on their local pieces with the two reductions below, because
DTensor does not split convolutions by channels.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from paralab.axes.initialise import local
from paralab.axes.pieces import distribute, run_locally
from paralab.axes.tensor import EXPERTS, SPLIT_DIM, is_gathered, style_of
from paralab.models.spec import Style
from paralab.processes.mesh import Mesh

_SEQUENCE = Shard(1)  # activations are (batch, sequence, hidden)


def split_layers(part: nn.Module, plan: Mapping[str, Style], *, mesh: Mesh) -> None:
    """Split the modules of a part in place, following the model's plan. Patterns that match nothing are skipped:
    a pipeline stage holds only some of the modules."""
    sequence = mesh.layout.sequence_parallel
    for name, module in list(part.named_modules()):
        style = style_of(name, plan)
        if sequence and is_gathered(name, plan):
            _split_in_terms(style, module, mesh=mesh["tp"])
        elif style is not None:
            parallelize_module(module, mesh["tp"], _style(style, module, mesh=mesh, sequence=sequence))


def _split_in_terms(style: Style | None, module: nn.Module, *, mesh: DeviceMesh) -> None:
    """Split a module within one that gathers the sequence, without sums: each rank goes on with its term.

    What may be there: `paralab.axes.tensor.rules.sequence_problems`.
    """
    if style is None:
        _OnHeads()._apply(module, mesh)
        return
    distribute(module, EXPERTS if style == "experts" else {"weight": SPLIT_DIM[style], "bias": 0}, mesh)
    run_locally(module)


def align_gradients(parts: list[nn.Module], *, mesh: Mesh) -> None:
    """Bring every gradient to the placement of its parameter.

    Autograd leaves some as terms of a sum: a norm's under sequence parallelism, where each rank saw a piece of
    the sequence. Those of whole parameters are summed together, in one all-reduce.
    """
    terms: list[tuple[DTensor, Tensor]] = []  # parameters, and this rank's terms
    for p in (p for part in parts for p in part.parameters() if isinstance(p, DTensor)):
        if isinstance(p.grad, DTensor) and p.grad.placements != p.placements:
            if all(placement.is_replicate() for placement in p.placements) and p.grad.placements[-1].is_partial():
                terms.append((p, local(p.grad)))
            else:
                p.grad = p.grad.redistribute(placements=p.placements)
    if not terms:
        return
    flat = torch.cat([term.flatten() for _, term in terms])
    dist.all_reduce(flat, group=mesh.group("tp"))
    for (parameter, _), piece in zip(terms, flat.split([term.numel() for _, term in terms]), strict=True):
        whole = piece.view(parameter.shape)
        parameter.grad = DTensor.from_local(whole, parameter.device_mesh, parameter.placements)


def _style(style: Style, module: nn.Module, *, mesh: Mesh, sequence: bool) -> ParallelStyle:
    whole = _SEQUENCE if sequence else Replicate()  # what travels between the split layers
    if style == "vocab_loss":
        return _SplitVocabulary(mesh, sequence=sequence)
    if style == "vocab_embedding":
        return RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())
    if style == "sequence":
        return SequenceParallel() if sequence else _Untouched()
    if style == "scatter_sequence":
        scatter = PrepareModuleOutput(output_layouts=Replicate(), desired_output_layouts=_SEQUENCE)
        return scatter if sequence else _Untouched()
    if style == "whole_sequence":
        return _WholeSequence() if sequence else _Untouched()
    if style == "channels":
        return _SplitChannels()
    if style == "heads":
        return _OnHeads()
    if style == "experts":
        return _SplitExperts()
    if style == "column_gathered":
        return ColwiseParallel(output_layouts=Replicate())
    if style == "row_of_whole":
        return RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())
    if isinstance(module, nn.Conv2d):
        return _SplitConvolution(shard_dim=0 if style == "column" else 1)
    return ColwiseParallel(input_layouts=whole) if style == "column" else RowwiseParallel(output_layouts=whole)


class _Untouched(ParallelStyle):
    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return module


class _OutputLayer(Protocol):
    """What a module of the style `vocab_loss` has: rows of a vocabulary, and a reduction over their ranks."""

    weight: Tensor
    row_offset: int
    all_reduce: Callable[[Tensor, str], Tensor]


class _SplitVocabulary(ParallelStyle):
    """Rows of the output layer over ranks. The module reduces the softmax itself (paralab.models.cross_entropy)."""

    def __init__(self, mesh: Mesh, *, sequence: bool) -> None:
        super().__init__()
        self.mesh, self.sequence = mesh, sequence

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        distribute(module, {"weight": 0}, device_mesh)
        output = cast(_OutputLayer, module)
        output.row_offset = self.mesh.rank("tp") * (output.weight.shape[0] // self.mesh.size("tp"))
        output.all_reduce = self.mesh.all_reduce("tp")
        if self.sequence:
            gather = PrepareModuleInput(
                input_layouts=(_SEQUENCE, None), desired_input_layouts=(Replicate(), None), use_local_output=True
            )
            gather._apply(module, device_mesh)
        return module


class _WholeSequence(ParallelStyle):
    """A module that is given the whole sequence, and of whose first output each rank has a term and keeps a piece."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def gather(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            x = inputs[0]
            piece = x if isinstance(x, DTensor) else DTensor.from_local(x, device_mesh, [_SEQUENCE], run_check=False)
            whole = piece.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
            return (whole, *inputs[1:])

        def scatter(_: nn.Module, inputs: tuple[Any, ...], out: Any) -> Any:
            first, *others = out if isinstance(out, tuple) else (out,)
            terms = DTensor.from_local(first, device_mesh, [Partial()], run_check=False)
            piece = terms.redistribute(placements=[_SEQUENCE]).to_local()
            shared = (_ShareOfGradient.apply(x, device_mesh.size()) for x in others)
            return (piece, *shared) if isinstance(out, tuple) else piece

        module.register_forward_pre_hook(gather)
        module.register_forward_hook(scatter)
        return module


class _SplitConvolution(ParallelStyle):
    """A convolution split by output channels (shard_dim 0) or by input channels (shard_dim 1)."""

    def __init__(self, *, shard_dim: int) -> None:
        super().__init__()
        self.shard_dim = shard_dim

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert module.bias is None or self.shard_dim == 0, "a bias would be added once by every rank"
        distribute(module, {"weight": self.shard_dim, "bias": 0}, device_mesh)
        group = device_mesh.get_group()
        if self.shard_dim == 0:
            module.register_forward_pre_hook(lambda _, inputs: (_CopyToRanks.apply(inputs[0], group),))
        run_locally(module)
        if self.shard_dim == 1:
            module.register_forward_hook(lambda _, inputs, output: _SumOverRanks.apply(output, group))
        return module


class _SplitExperts(ParallelStyle):
    """A part of the width of every expert: columns of the layer up, rows of the layer down."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        distribute(module, EXPERTS, device_mesh)
        group = device_mesh.get_group()
        module.register_forward_pre_hook(lambda _, inputs: (_CopyToRanks.apply(inputs[0], group), *inputs[1:]))
        run_locally(module)
        module.register_forward_hook(lambda _, inputs, output: _SumOverRanks.apply(output, group))
        return module


class _SplitChannels(ParallelStyle):
    """A norm over split channels: statistics of a channel need no other channel, so it runs locally and exactly."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        distribute(module, {name: 0 for name, tensor in tensors.items() if tensor.ndim}, device_mesh)
        for attribute in ("num_features", "num_channels", "num_groups"):
            if hasattr(module, attribute):
                setattr(module, attribute, getattr(module, attribute) // device_mesh.size())
        run_locally(module)
        return module


class _OnHeads(ParallelStyle):
    """A norm within each head: whole on every rank, which has only its own heads, so that gradients are summed."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        distribute(module, {name: None for name, _ in module.named_parameters()}, device_mesh)
        run_locally(module, gradients=(Partial(),))
        return module


class _CopyToRanks(torch.autograd.Function):
    """Identity forward, all-reduce backward: every rank used the same input for its own channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _ShareOfGradient(torch.autograd.Function):
    """Identity forward; backward each rank takes its share of what all have in full, so that terms add up to it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.ranks, None


class _SumOverRanks(torch.autograd.Function):
    """All-reduce forward, identity backward: every rank holds a term of the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
