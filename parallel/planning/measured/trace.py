"""What a rank of a layout runs in one micro-batch: the operations of its stages, on tensors without values.

Nothing is computed and no process is started: the modules of a stage, with the shapes that a tensor rank has of them,
go forward and backward once on fake tensors, and each operation is noted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from paralab.axes.axis import StageMemory
from paralab.axes.context import Planned
from paralab.axes.held import state_bytes_of
from paralab.axes.initialise import tie
from paralab.axes.precision import DTYPES, cast, in_dtype, weight_dtype
from paralab.axes.recompute import recompute
from paralab.axes.sent import Noted, casts_weights, noted_stages
from paralab.axes.shapes import part
from paralab.axes.tensor.rules import leave_part
from paralab.layout import words
from paralab.models.found import move_plain_tensors
from paralab.models.gathering import Gathering
from paralab.models.spec import Reducing, Style
from paralab.planning.measured.live import Live, each, peak, peak_adding
from paralab.planning.measured.operations import Recorder, Work


@dataclass(frozen=True)
class Traced:
    """One stage in one micro-batch. parameters: how many tensors are trained, weights: their elements.

    kept_bytes: of activations between forward and backward. peak_bytes: the most that activations take together with
    the gradients that are there by then, peak_gradients_bytes. adding_bytes: the most that activations take where
    gradients are there already: a new one counts until it is added. waiting_bytes: of gradients that wait for a second
    half of backward, those of what modules with weights returned. live: what came and went, for where parameters are
    gathered as they are needed.
    """

    forward: Work
    backward: Work
    parameters: int
    weights: int
    kept_bytes: int
    peak_bytes: int
    peak_gradients_bytes: int
    adding_bytes: int
    waiting_bytes: int
    live: Live = field(repr=False)


class _Held:
    """A plan that an entry of a cache is made from; all plans are alike as a key."""

    def __init__(self, plan: Planned) -> None:
        self.plan = plan

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held)


def traces(plan: Planned) -> tuple[Traced, ...]:
    """Return what each stage of a layout runs, first to last."""
    return _traces(_key(plan), _Held(plan), plan.division.micro_batch_size)


def noted(plan: Planned) -> tuple[Noted, ...]:
    """Return what the modules of each stage of a layout communicate, first to last."""
    return _noted(_key(plan), _Held(plan), plan.division.micro_batch_size)


def states(plan: Planned, pp_rank: int) -> StageMemory:
    """Return the bytes of parameters, gradients and optimizer states on the ranks of one pipeline rank."""
    layout, run = plan.layout, plan.run
    options = tuple(getattr(layout, one.name) for one in words.options() if one.name != "micro_batches")
    chunks = min(plan.division.chunks, layout.pp + 1)  # more of them change nothing
    divided = (tuple(layout.dims.items()), options, run.optimizer, run.momentum, chunks, pp_rank)
    return _states((_key(plan), divided), _Held(plan))


@lru_cache(maxsize=4096)
def _states(key: Any, held: _Held) -> StageMemory:
    return state_bytes_of(held.plan, key[1][-1])


def _key(plan: Planned) -> Any:
    """Return all of a plan that decides what modules run."""
    layout, run = plan.layout, plan.run
    cut = (layout.stages, layout.first_layers, layout.last_layers)
    over = layout.dp if plan.spec.whole_batch else layout.dp > 1
    split = (layout.tp, layout.sequence_parallel, over if not layout.local else False)
    return (plan.spec, plan.model_config, run.precision, run.checkpointing, cut, split, casts_weights(plan))


@lru_cache(maxsize=512)
def _traces(key: Any, held: _Held, rows: int) -> tuple[Traced, ...]:
    return tuple(_each_stage(held.plan, rows))


@lru_cache(maxsize=512)
def _noted(key: Any, held: _Held, rows: int) -> tuple[Noted, ...]:
    return tuple(noted_stages(held.plan, held.plan.layout.stages - 1))


def _each_stage(plan: Planned, rows: int) -> Iterator[Traced]:
    precision, fake = plan.run.precision, FakeTensorMode(allow_non_fake_inputs=True)
    examples, target = plan.spec.example(plan.model_config, rows)
    lower, casts = precision in ("bf16", "fp16"), casts_weights(plan)
    with fake:
        hidden = tuple(in_dtype(torch.empty_like(x, device="cpu"), weight_dtype(precision)) for x in examples)
        target = in_dtype(torch.empty_like(target, device="cpu"), weight_dtype(precision))
    for index in range(plan.layout.stages):
        module = stage_module(plan, index)
        last = index == plan.layout.stages - 1
        if casts:
            hidden = cast(module, hidden, precision)
        with fake:
            module.to_empty(device="cpu")
            move_plain_tensors(module, "cpu")
            tie(module, plan.spec.tied_in(plan.model_config))
            with torch.autocast("cpu", DTYPES[precision], enabled=lower and not casts):
                traced, hidden = _run(module, hidden, target if last else None)
            hidden = tuple(in_dtype(x, weight_dtype(precision)) for x in hidden)
        yield traced


def stage_module(plan: Planned, index: int) -> nn.Module:
    """Return a stage on the meta device as one rank has it: with its part of the layers that are split."""
    module, layout = part(plan, index), plan.layout
    if layout.tp > 1:
        tensor_plan = plan.spec.tensor_plan(plan.model_config)
        leave_part(module, tensor_plan, layout.tp)
        _split_embeddings(module, tensor_plan, layout.tp)
    for one in module.modules():
        if isinstance(one, Reducing) and layout.size(one.axis) > 1:
            one.ranks, one.all_reduce = layout.size(one.axis), _over_ranks
        if isinstance(one, Gathering) and layout.dp > 1:
            one.ranks, one.all_gather = layout.dp, partial(_of_all_ranks, ranks=layout.dp)
    recompute(module, plan.run.checkpointing)
    return module


def _split_embeddings(module: nn.Module, tensor_plan: Mapping[str, Style], ranks: int) -> None:
    """Have embeddings whose vocabulary is divided run backward as DTensor does: for all tokens, then a part."""
    for name, one in module.named_modules():
        style = next((style for pattern, style in tensor_plan.items() if fnmatchcase(name, pattern)), None)
        if style == "vocab_embedding" and isinstance(one, nn.Embedding):
            one.forward = partial(_OfAllTokens.embed, one, ranks)  # type: ignore[method-assign]


class _OfAllTokens(torch.autograd.Function):
    """An embedding (rows, hidden) of tokens of any shape, whose gradient is made for all tokens of all ranks."""

    @classmethod
    def embed(cls, module: nn.Embedding, ranks: int, tokens: Tensor) -> Tensor:
        return cls.apply(module.weight, tokens, ranks)

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, ranks: int) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.rows, ctx.ranks = weight.shape[0], ranks
        return nn.functional.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (tokens,) = ctx.saved_tensors
        whole = torch.ops.aten.embedding_dense_backward(gradient, tokens, ctx.rows * ctx.ranks, -1, False)
        ctx.whole = whole  # as long as there: until what it is added to has been made
        return whole[: ctx.rows].clone(), None, None


def _over_ranks(tensor: Tensor, op: str) -> Tensor:
    """Return a tensor of any shape as it is: what it takes to reduce it is counted elsewhere."""
    return tensor


def _of_all_ranks(x: Tensor, ranks: int) -> Tensor:
    """Return a tensor (ranks, *x.shape), of any shape of x: what it takes to gather it is counted elsewhere."""
    return x.new_empty((ranks, *x.shape))


def _run(module: nn.Module, inputs: tuple[Tensor, ...], target: Tensor | None) -> tuple[Traced, tuple[Tensor, ...]]:
    """Return what a stage runs forward and backward, and what the next one gets."""
    parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    inputs = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in inputs)
    live = Live([*module.parameters(), *module.buffers(), *inputs])
    returned: list[int] = []
    hooks = [
        one.register_forward_hook(lambda _, __, out: returned.append(sum(x.nbytes for x in each(out))))
        for one in module.modules()
        if any(p.requires_grad for p in one.parameters(recurse=False))
    ]
    with Recorder(live.see) as forward:
        out = module(*inputs) if target is None else module(*inputs, targets=target)
    for hook in hooks:
        hook.remove()
    outputs = out if isinstance(out, tuple) else (out,)
    for name, p in parameters:
        p.register_post_accumulate_grad_hook(lambda p, name=name: live.added(name, p.grad))
    kept, gradients = live.now, [torch.ones_like(x) for x in outputs]
    with Recorder(live.see) as backward:
        torch.autograd.backward(outputs, gradients)
    most, of_gradients = peak(live)
    traced = Traced(
        forward=forward.work,
        backward=backward.work,
        parameters=len(parameters),
        weights=sum(p.numel() for _, p in parameters),
        kept_bytes=kept,
        peak_bytes=most,
        peak_gradients_bytes=of_gradients,
        adding_bytes=peak_adding(live),
        waiting_bytes=sum(returned),
        live=live,
    )
    return traced, tuple(x.detach() for x in outputs)
