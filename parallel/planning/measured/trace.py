"""What a rank of a layout runs in one micro-batch: the operations of its stages, on tensors without values.

Nothing is computed and no process is started: the modules of a stage, with the shapes that a tensor rank has of them,
go forward and backward once on fake tensors, and each operation is noted.
"""

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from paralab.axes.precision import DTYPES, in_dtype, weight_dtype
from paralab.axes.recompute import recompute
from paralab.axes.sent import Noted, noted_stages
from paralab.axes.shapes import part
from paralab.axes.tensor.rules import leave_part
from paralab.models.found import move_plain_tensors
from paralab.models.gathering import Gathering
from paralab.models.spec import Reducing, Style
from paralab.planning.measured.operations import Recorder, Work


@dataclass(frozen=True)
class Traced:
    """One stage in one micro-batch. parameters: how many tensors are trained, weights: their elements.

    kept_bytes: of activations between forward and backward. peak_bytes: the most that activations take together with
    the gradients that are there by then, peak_gradients_bytes. adding_bytes: the most that activations take where
    gradients are there already: a new one counts until it is added. waiting_bytes: of gradients that wait for a second
    half of backward, those of what modules with weights returned.
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
    layout = plan.layout
    divided = (layout.zero, layout.dp, layout.shard, layout.schedule, layout.pp, plan.run.optimizer, pp_rank)
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
    casts = layout.zero >= 2 and run.precision in ("bf16", "fp16")
    return (plan.spec, plan.model_config, run.precision, run.checkpointing, cut, split, casts)


@lru_cache(maxsize=512)
def _traces(key: Any, held: _Held, rows: int) -> tuple[Traced, ...]:
    return tuple(_each_stage(held.plan, rows))


@lru_cache(maxsize=512)
def _noted(key: Any, held: _Held, rows: int) -> tuple[Noted, ...]:
    return tuple(noted_stages(held.plan, held.plan.layout.stages - 1))


def _each_stage(plan: Planned, rows: int) -> Iterator[Traced]:
    precision, fake = plan.run.precision, FakeTensorMode(allow_non_fake_inputs=True)
    examples, target = plan.spec.example(plan.model_config, rows)
    lower = precision in ("bf16", "fp16")
    with fake:
        hidden = tuple(in_dtype(torch.empty_like(x, device="cpu"), weight_dtype(precision)) for x in examples)
        target = in_dtype(torch.empty_like(target, device="cpu"), weight_dtype(precision))
    for index in range(plan.layout.stages):
        module = stage_module(plan, index)
        last = index == plan.layout.stages - 1
        with fake:
            module.to_empty(device="cpu")
            move_plain_tensors(module, "cpu")
            tie(module, plan.spec.tied_in(plan.model_config))
            with torch.autocast("cpu", DTYPES[precision], enabled=lower):
                traced, hidden = _run(module, hidden, target if last else None)
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
    parameters = [p for p in module.parameters() if p.requires_grad]
    inputs = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in inputs)
    memory = _Memory([*module.parameters(), *module.buffers(), *inputs])
    returned: list[int] = []
    hooks = [
        one.register_forward_hook(lambda _, __, out: returned.append(sum(x.nbytes for x in _each(out))))
        for one in module.modules()
        if any(p.requires_grad for p in one.parameters(recurse=False))
    ]
    with Recorder(memory.see) as forward:
        out = module(*inputs) if target is None else module(*inputs, targets=target)
    for hook in hooks:
        hook.remove()
    outputs = out if isinstance(out, tuple) else (out,)
    for p in parameters:
        p.register_post_accumulate_grad_hook(lambda p: memory.added(p.grad))
    kept, gradients = memory.now, [torch.ones_like(x) for x in outputs]
    with Recorder(memory.see) as backward:
        torch.autograd.backward(outputs, gradients)
    peak, of_gradients = memory.peak({p.grad.untyped_storage()._cdata for p in parameters if p.grad is not None})
    traced = Traced(
        forward=forward.work,
        backward=backward.work,
        parameters=len(parameters),
        weights=sum(p.numel() for p in parameters),
        kept_bytes=kept,
        peak_bytes=peak,
        peak_gradients_bytes=of_gradients,
        adding_bytes=memory.peak_adding(),
        waiting_bytes=sum(returned),
    )
    return traced, tuple(x.detach() for x in outputs)


class _Memory:
    """How many bytes of tensors are there, apart from some that have been there before."""

    def __init__(self, known: list[Tensor]) -> None:
        self.now = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._live: dict[int, weakref.ref] = {}
        self._events: list[tuple[int, int]] = []  # storage, bytes more
        self._added: list[tuple[int, int, int]] = []  # events before, storage, bytes

    def see(self, result: Any) -> None:
        """Note the storages of what an operation returned."""
        for tensor in _each(result):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known and key not in self._live:
                self._live[key] = weakref.ref(storage, partial(self._freed, key, size))
                self._add(key, size)

    def _freed(self, key: int, size: int, _: Any) -> None:
        self._live.pop(key, None)
        self._add(key, -size)

    def _add(self, key: int, size: int) -> None:
        self.now += size
        self._events.append((key, size))

    def added(self, gradient: Tensor | None) -> None:
        """Note that a gradient has reached its parameter: where there was one before, it is freed now."""
        if gradient is not None:
            key = gradient.untyped_storage()._cdata
            size = gradient.untyped_storage().nbytes()
            self._added.append((len(self._events), key, size))

    def peak_adding(self) -> int:
        """Return the most bytes at once where each gradient is added to one that is there."""
        steps: list[tuple[float, int]] = [(number, size) for number, (_, size) in enumerate(self._events)]
        steps += [(at - 0.5, -size) for at, _, size in self._added]
        now = peak = 0
        for _, size in sorted(steps, key=lambda step: step[0]):
            now += size
            peak = max(peak, now)
        return peak

    def peak(self, gradients: set[int]) -> tuple[int, int]:
        """Return the most bytes at once, and how many of them were gradients. gradients: their storages at the end."""
        last = {key: number for number, (key, size) in enumerate(self._events) if size > 0}
        now = of_gradients = peak = then = 0
        for number, (key, size) in enumerate(self._events):
            now += size
            if key in gradients and number >= last[key]:  # an address may have been of another tensor before
                of_gradients += size
            if now > peak:
                peak, then = now, of_gradients
        return peak, then


def _each(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for one in found:
            yield from _each(one)
