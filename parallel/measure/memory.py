"""Peak memory of one rank by what the tensors are for, and of the process as a whole.

The census follows tensor storages through torch's dispatcher; a storage counts once however many tensors look at
it. Scratch memory inside kernels is not seen. It slows every operation down: enter it around one extra step that
is not timed.
"""

import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from paralab.measure.categories import MEMORY_CATEGORIES, STATE_CATEGORIES

# Operations of FSDP2 that read the gradients of gathered parameters on their way to the reduce-scatter.
_GRADIENT_READERS = {"aten::_chunk_cat", "fsdp::chunk_cat"}
# A call whose tensors are the model's own: they are activations, not buffers of the collective.
_NOT_BUFFERS = {"c10d::send"}


@dataclass
class _Storage:
    """A storage seen by the census. It outlives the memory, so that a peak can be explained afterwards."""

    size: int
    category: str = "activations"
    made: str = ""  # where, or by which name it is known


@dataclass(frozen=True)
class Made:
    """Tensors of one category that came from one place and were there at the peak. size_bytes: of all of them."""

    category: str
    made: str
    count: int
    size_bytes: int


@dataclass(frozen=True)
class MemoryReport:
    """Bytes by category: at the moment when their sum was largest, and at rest after the step.

    state_peak_bytes: the most that parameters, gradients and optimizer states took together at any moment.
    Categories are those of `MEMORY_CATEGORIES`. Activations include inputs and temporary tensors; buffers are what
    communication holds: gathered parameters, gradient buckets, receive buffers; other is the buffers of modules.
    """

    peak: dict[str, int]
    rest: dict[str, int]
    state_peak_bytes: int = 0
    largest: tuple[Made, ...] = ()  # at the peak, by where they were made: of a census that notes it

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak.values())


@dataclass(frozen=True)
class _Event:
    """A change of what one storage holds. `met`: its first, by an operation or a mark that did not create it."""

    storage: _Storage
    change: int
    met: bool = False


def _replay(events: list[_Event]) -> MemoryReport:
    """Run through the events in order. Categories are looked up now, when all are known."""
    now = dict.fromkeys(MEMORY_CATEGORIES, 0)
    total, best, peak, state_peak, fullest = 0, 0, dict(now), 0, 0
    for number, event in enumerate(events, start=1):
        now[event.storage.category] += event.change
        total += event.change
        if total > best:
            best, peak, fullest = total, dict(now), number
        state_peak = max(state_peak, sum(now[category] for category in STATE_CATEGORIES))
    return MemoryReport(peak=peak, rest=now, state_peak_bytes=state_peak, largest=_largest(events[:fullest]))


_SHOWN = 12  # places of a report


def _largest(events: list[_Event]) -> tuple[Made, ...]:
    """Return what is there after these events by where it was made, the largest first."""
    there: dict[int, tuple[_Storage, int]] = {}
    for event in events:
        there[id(event.storage)] = event.storage, there.get(id(event.storage), (event.storage, 0))[1] + event.change
    by_place: dict[tuple[str, str], list[int]] = {}
    for storage, size in there.values():
        if size > 0 and storage.made:
            by_place.setdefault((storage.category, storage.made), []).append(size)
    found = [Made(category, made, len(sizes), sum(sizes)) for (category, made), sizes in by_place.items()]
    return tuple(sorted(found, key=lambda made: -made.size_bytes)[:_SHOWN])


class MemoryCensus(TorchDispatchMode):
    """Follow the storages on one device during a step: `with MemoryCensus(parts, [optimizer]) as census: step()`.

    parts: the modules this rank holds. optimizers: needed when they do not step inside; otherwise states and
    gradients are recognised when any torch optimizer steps, wrapped ones too. held: returns the tensors that an
    engine holds for itself at that moment, by category. device: where to count, by default where the first parameter
    lives. places: whether to note where each tensor is made, which takes longer.
    A storage that no operation was seen to create is taken to have been there all along if it outlives the step,
    and else to begin when it is first used (gloo makes such copies).
    """

    def __init__(
        self,
        parts: Iterable[nn.Module],
        optimizers: Iterable[Optimizer] = (),
        *,
        held: Callable[[], Mapping[str, Iterable[Tensor]]] = dict,
        device: torch.device | None = None,
        places: bool = False,
    ) -> None:
        super().__init__()
        self._held, self._places = held, places
        self._parts, self._optimizers = list(parts), list(optimizers)
        parameter = next((p for part in self._parts for p in part.parameters()), None)
        default = torch.device("cpu") if parameter is None else parameter.device
        self._device = torch.empty(0, device=device or default).device  # "cuda" becomes "cuda:0"
        self._events: list[_Event] = []
        self._live: dict[int, tuple[_Storage, weakref.ref]] = {}
        self._filled: set[int] = set()  # storages that were empty when the step began, and have not been seen
        self._lock = threading.RLock()  # autograd and gloo call operations from threads of their own
        self._hooks = ExitStack()

    def report(self) -> MemoryReport:
        """Return peak and rest. Valid after leaving the context."""
        return _replay(self._events)

    def __enter__(self) -> "MemoryCensus":
        self._mark_model()
        for optimizer in self._optimizers:
            self._mark_optimizer(optimizer)
        before = register_optimizer_step_pre_hook(lambda optimizer, *_: self._mark_gradients(optimizer))
        after = register_optimizer_step_post_hook(lambda optimizer, *_: self._mark_optimizer(optimizer))
        self._hooks.callback(before.remove)
        self._hooks.callback(after.remove)
        self._hooks.enter_context(_watch_resize(self._resized))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._hooks.close()
        self._mark_model()
        with self._lock:
            survivors = {id(storage) for storage, _ in self._live.values()}
            self._live.clear()  # stops counting: what the step returned may be freed at any time after it
        # Stable: what was there all along comes first, the rest stays in order.
        self._events.sort(key=lambda event: not (event.met and id(event.storage) in survivors))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # let DTensor run first: its local tensors come back here
        kwargs = kwargs or {}
        collective = func.namespace == "c10d" and func._schema.name not in _NOT_BUFFERS
        category = "buffers" if collective else None
        for tensor in _tensors((args, tuple(kwargs.values()))):
            self._see(tensor, met=True, unless_known=category)
        if func._schema.name in _GRADIENT_READERS:
            for tensor in _tensors(args[0]):
                self._see(tensor, met=True, unless_known="gradients")
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._see(tensor, met=False, made=func)
        self._mark_held()  # some are there for a part of the step only
        return result

    def _see(
        self,
        tensor: Tensor,
        *,
        met: bool,
        category: str | None = None,
        unless_known: str | None = None,
        made: Any = None,
    ) -> None:
        if tensor.device != self._device:
            return
        raw = tensor.untyped_storage()
        with self._lock:
            known = raw._cdata in self._live
            storage = self._find(raw, size=raw.nbytes(), met=met)
            if self._places and not known and made is not None:
                storage.made = f"{_place()}, {made.name()}"
            if category:
                storage.category = category
            elif unless_known and storage.category == "activations":
                storage.category = unless_known

    def _find(self, raw: torch.UntypedStorage, *, size: int, met: bool) -> _Storage:
        """Return the storage's entry, making one of this size when it is new."""
        key = raw._cdata
        if key not in self._live:
            storage = _Storage(size)
            self._events.append(_Event(storage, size, met and key not in self._filled))
            self._live[key] = storage, weakref.ref(raw, lambda _: self._freed(key, storage))
        return self._live[key][0]

    def _freed(self, key: int, storage: _Storage) -> None:
        with self._lock:
            # The address may have been given to a new storage before the old one's callback runs.
            if key in self._live and self._live[key][0] is storage:
                del self._live[key]
                self._events.append(_Event(storage, -storage.size))

    def _resized(self, raw: torch.UntypedStorage, before: int) -> None:
        with self._lock:
            if raw.device != self._device and raw._cdata not in self._live:  # a fake tensor's says meta
                self._filled |= {raw._cdata} if before == 0 else set()
                return
            storage = self._find(raw, size=before, met=True)
            if storage.category == "activations":
                storage.category = "buffers"  # FSDP2 frees and refills gathered parameters this way
            self._events.append(_Event(storage, raw.nbytes() - storage.size))
            storage.size = raw.nbytes()

    def _mark_model(self) -> None:
        for part in self._parts:
            for name, parameter in part.named_parameters():
                self._mark(parameter, "parameters", name=name)
                self._mark(getattr(parameter, "ds_tensor", None), "parameters")  # its share under DeepSpeed's stage 3
                self._mark(parameter.grad, "gradients", name=f"gradient of {name}")
            for buffer in part.buffers():
                self._mark(buffer, "other")
        self._mark_held()

    def _mark_held(self) -> None:
        for category, tensors in self._held().items():
            for tensor in tensors:
                self._see(tensor, met=True, unless_known=category)

    def _mark_gradients(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self._mark(parameter.grad, "gradients")

    def _mark_optimizer(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            for tensor in _tensors(group["params"]):
                # What it updates in place of the model's own parameters: the copy that mixed precision keeps, and
                # DeepSpeed in any. ZeRO counts it as optimizer state (Rajbhandari et al. 2020, section 3.1).
                self._see(tensor, met=True, unless_known="optimizer")
        for state in optimizer.state.values():
            for name, value in state.items() if isinstance(state, dict) else ():
                self._mark(value, "optimizer", name=f"{name} of {type(optimizer).__name__}")

    def _mark(self, value: Any, category: str, *, name: str = "") -> None:
        for tensor in _tensors(value):
            self._see(tensor, met=True, category=category)
            if self._places and (known := self._live.get(tensor.untyped_storage()._cdata)) and not known[0].made:
                known[0].made = name


_TORCH = str(Path(torch.__file__).parent)


def _place() -> str:
    """Return file, line and function of the innermost caller outside torch and this file."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_code.co_filename == __file__ or frame.f_code.co_filename.startswith(_TORCH)):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the plain tensors inside nested arguments, opening wrappers such as DTensor."""
    if isinstance(value, Tensor):
        if is_traceable_wrapper_subclass(value):
            names, _ = value.__tensor_flatten__()
            for name in names:
                yield from _tensors(getattr(value, name))
        elif value.layout == torch.strided:
            yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


@contextmanager
def _watch_resize(report: Callable[[torch.UntypedStorage, int], None]) -> Iterator[None]:
    """Call `report(storage, bytes before)` after each resize of a storage, which no dispatcher sees."""
    resize = torch.UntypedStorage.resize_

    def watched(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        before = storage.nbytes()
        result = resize(storage, size)
        report(storage, before)
        return result

    setattr(torch.UntypedStorage, "resize_", watched)  # noqa: B010 (a type checker refuses the plain form)
    try:
        yield
    finally:
        setattr(torch.UntypedStorage, "resize_", resize)  # noqa: B010


def reset_process_peak(root: Path = Path("/proc/self")) -> bool:
    """Set the high-water mark of resident memory back to what is resident now; False where Linux refuses.

    Source: proc(5), writing 5 to clear_refs.
    """
    try:
        (root / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def process_peak_bytes(root: Path = Path("/proc/self")) -> int | None:
    """Return the largest resident set since start or `reset_process_peak`, or None away from Linux (VmHWM, proc(5))."""
    try:
        lines = (root / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def reset_device_peak(device: torch.device) -> None:
    """Start `device_peak_bytes` again; nothing to do on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def device_peak_bytes(device: torch.device) -> tuple[int | None, int | None]:
    """Return allocated and reserved peak of the caching allocator, or (None, None) on a CPU."""
    if device.type != "cuda":
        return None, None
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
