"""What a step of a model takes, counted on its own modules: of one that is no transformer of texts.

The model runs once on the meta device, where tensors have shapes and no values. Counted are, for each block and for
what is before and after all blocks: weights, FLOPs of matrix products and convolutions, elements that other operations
read and write, elements that are kept for backward, and launches.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from paralab.axes.initialise import tie
from paralab.axes.precision import in_dtype
from paralab.axes.tensor.rules import sizes_to_divide
from paralab.console.quiet import quiet
from paralab.errors import ModelError
from paralab.models.configs import C
from paralab.models.found import move_plain_tensors
from paralab.models.spec import SAMPLES_TRIED, ModelSpec
from paralab.planning import lengths
from paralab.planning.parts import Counted, Kept, Part

FIRST, LAST = -1, -2  # the parts before and after all blocks
_DIVIDED = ("column", "row", "column_gathered", "row_of_whole", "channels", "vocab_embedding", "vocab_loss")
_REDUCING = ("row", "row_of_whole")
_OPENING, _CLOSING = ("column",), ("row", "row_of_whole", "column_gathered")  # activations that ranks have in pieces


@lru_cache(maxsize=8)
def count(spec: ModelSpec[C], config: C) -> Counted:
    """Return what the parts of a model take. Raises: ModelError where it does not run on the meta device.

    One that works token by token is counted at short lengths, and that of its config follows.
    """
    length = getattr(config, "seq_len", 0)
    if length > max(lengths.PROBED):
        *few, third, fourth = lengths.PROBED
        counts = [_count(spec, replace(config, seq_len=tokens)) for tokens in few]
        if lengths.by_tokens(counts):
            counts += [_count(spec, replace(config, seq_len=tokens)) for tokens in (third, fourth)]
            found = lengths.at_length(counts, length)
            if found is not None:
                return replace(found, units_per_sample=spec.units_in_sample(config))
    return _count(spec, config)


def _count(spec: ModelSpec[C], config: C) -> Counted:
    """Return the same, counted at the length of the config."""
    model = spec.on_meta(config).train()
    counter = _Counter(model, spec.blocks(config), spec.tensor_plan(config))
    inputs, targets = spec.example(config, SAMPLES_TRIED)
    try:
        with counter.counting():
            model(*(x.to("meta") for x in inputs), targets=targets.to("meta"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:160]
        use = "see paralab check-model, or give --layers, --hidden and the other sizes"
        raise ModelError(f"{spec.name} cannot be counted on the meta device ({said}): {use}") from None
    return Counted(
        kept_in_16=_kept_in_16(spec, config, casts=False),
        kept_of_cast=_kept_in_16(spec, config, casts=True),
        blocks=tuple(counter.part(number) for number in range(len(counter.blocks))),
        first=counter.part(FIRST),
        last=counter.part(LAST),
        tensor_divides=math.gcd(*sizes_to_divide(spec, config).values()) if spec.tensor_plan(config) else 1,
        unit=spec.unit_of(config),
        units_per_sample=spec.units_in_sample(config),
    )


def _kept_in_16(spec: ModelSpec[C], config: C, *, casts: bool) -> Kept | None:
    """Return what backward needs of one sample in bf16, in elements of 2 bytes.

    casts: by weights that were cast to it, as FSDP does, and not by autocast, where norms,
    losses and what is added to weights in fp32 stay in fp32. None where the model does not run so.
    """
    fake, dtype = FakeTensorMode(allow_non_fake_inputs=True), torch.bfloat16 if casts else torch.float32
    model = spec.on_meta(config, dtype).train()
    with fake:
        model.to_empty(device="cpu")
        move_plain_tensors(model, "cpu")
        tie(model, spec.tied_in(config))
    counter = _Counter(model, spec.blocks(config), spec.tensor_plan(config))
    inputs, targets = spec.example(config, SAMPLES_TRIED)
    try:
        with fake:
            examples = tuple(in_dtype(torch.empty_like(x, device="cpu"), dtype) for x in inputs)
            with counter.counting(), torch.autocast("cpu", torch.bfloat16, enabled=not casts):
                model(*examples, targets=torch.empty_like(targets, device="cpu"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None
    kept = {number: size / 2 / SAMPLES_TRIED for number, size in counter.kept_bytes.items()}
    blocks = range(len(counter.blocks))
    return Kept(
        first=kept.get(FIRST, 0.0),
        blocks=sum(kept.get(number, 0.0) for number in blocks),
        last=kept.get(LAST, 0.0),
        handed_on=sum(counter.boundary_bytes.values()) / 2 / SAMPLES_TRIED,
        divided=sum(counter.divided_bytes[number] for number in blocks) / 2 / SAMPLES_TRIED,
    )


class _FusedAttention(TorchFunctionMode):
    """Runs attention as the one kernel that GPUs have for it: on the meta device torch takes it apart into products."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) == 3 and args[0].dim() == 4:
            if kwargs.get("attn_mask") is None and not kwargs.get("dropout_p"):
                causal = bool(kwargs.get("is_causal", False))
                return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, 0.0, causal)[0]
        return func(*args, **kwargs)


class _Counter(TorchDispatchMode):
    """Adds up what operations take, under the part of the model that runs them."""

    def __init__(self, model: nn.Module, blocks: tuple[str, ...], plan: Mapping[str, str]) -> None:
        super().__init__()
        self.model, self.blocks, self.plan = model, blocks, plan
        self.at, self.ran, self.divided, self.pieces = FIRST, False, False, False
        self.styles = {id(module): self._style(name) for name, module in model.named_modules()}
        self.sums: dict[str, Counter[int]] = {field.name: Counter() for field in fields(Part)}
        self.kept_bytes, self.divided_bytes, self.boundary_bytes = Counter[int](), Counter[int](), Counter[int]()
        self.seen: set[int] = set()
        self.held: list[Tensor] = []  # keeps ids from being used again
        self.parameters = {id(p) for p in model.parameters()}
        self._weigh()

    def part(self, number: int) -> Part:
        """Return what one part takes for one sample."""
        whole = ("weights", "divided_weights", "launches", "reductions")
        samples = {name: 1 if name in whole else SAMPLES_TRIED for name in self.sums}
        return Part(**{name: sums[number] / samples[name] for name, sums in self.sums.items()})

    def _style(self, name: str) -> str:
        return next((style for pattern, style in self.plan.items() if fnmatchcase(name, pattern)), "")

    def _weigh(self) -> None:
        seen: set[int] = set()
        for name, module in self.model.named_modules():
            place, style = self._place(name), self._style(name)
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    self.sums["weights"][place] += parameter.numel()
                    self.sums["divided_weights"][place] += parameter.numel() * (style in _DIVIDED)
            self.sums["reductions"][place] += style in _REDUCING

    def _place(self, name: str) -> int:
        for number, block in enumerate(self.blocks):
            if name == block or name.startswith(f"{block}."):
                return number
        return LAST if any(name.split(".")[0] == one for one in self._after) else FIRST

    @property
    def _after(self) -> Iterator[str]:
        """The children that are defined after the blocks."""
        names = [name for name, _ in self.model.named_children()]
        holder = self.blocks[-1].split(".")[0] if self.blocks else ""
        yield from names[names.index(holder) + 1 :] if holder in names else []

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what runs inside."""
        modules = dict(self.model.named_modules())
        handles = []
        for number, name in enumerate(self.blocks):
            handles.append(modules[name].register_forward_pre_hook(self._enter(number)))
            handles.append(modules[name].register_forward_hook(self._leave(number)))
        for name, module in modules.items():
            if self._style(name) in _DIVIDED:
                handles.append(module.register_forward_pre_hook(self._begin))
                handles.append(module.register_forward_hook(self._end))
        try:
            with quiet(), saved_tensors_hooks(self._keep, lambda saved: saved), _FusedAttention(), self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self.at = number

        return hook

    def _leave(self, number: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            returned = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
            self.sums["boundary"][number] += sum(t.numel() for t in returned)
            self.boundary_bytes[number] += sum(t.nbytes for t in returned)
            self.at = LAST if number == len(self.blocks) - 1 else FIRST

        return hook

    def _begin(self, *_: Any) -> None:
        self.divided = True

    def _end(self, module: nn.Module, *_: Any) -> None:
        """What follows a divided output is divided as well, until a layer takes it in."""
        self.divided = False
        style = self.styles[id(module)]
        self.pieces = style in _OPENING or (self.pieces and style not in _CLOSING)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage, size = tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()  # a view keeps all of it
        is_weight = id(tensor) in self.parameters or (tensor._base is not None and id(tensor._base) in self.parameters)
        if storage not in self.seen and not is_weight:
            self.seen.add(storage)
            self.held.append(tensor)
            self.sums["kept"][self.at] += size // tensor.itemsize
            self.sums["divided_kept"][self.at] += size // tensor.itemsize * self.pieces
            self.kept_bytes[self.at] += size
            self.divided_bytes[self.at] += size * self.pieces
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view or func.namespace != "aten":
            return result
        if func is torch.ops.aten._to_copy.default and id(args[0]) in self.parameters:
            self.parameters.add(id(result))  # cast for all samples together
            self.held.append(result)
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        self.sums["launches"][self.at] += 1
        is_attention = "attention" in func.__name__
        flops = _flops(func, args, kwargs or {}, result)
        if flops is None:
            self.sums["traffic"][self.at] += sum(t.numel() for t in tensors if id(t) not in self.parameters)
        else:
            self.sums["flops"][self.at] += flops
            self.sums["divided_flops"][self.at] += flops * (self.divided or is_attention)
        return result


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int | None:
    """Return the FLOPs of a product, a convolution or attention; None of what only moves elements."""
    if "attention" in func.__name__:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    counted = flop_registry.get(func.overloadpacket)
    return counted(*args, **kwargs, out_val=result) if counted is not None else None
