"""The rules of `models/spec.py`, applied to a model on the meta device: which one it breaks, where, and what is needed.

Nothing is trained and no process is started. A forward pass on the meta device shows what a pipeline, a tensor split
or a parity check would trip over later, with the line of the model's own file.
"""

import copy
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Generic, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from paralab.axes.pipeline.stages import cut_stage
from paralab.errors import ModelError, did_you_mean
from paralab.layout import Layout
from paralab.models.found import beside, plain_tensors
from paralab.models.spec import C, ModelSpec, Reducing, Style

_STYLES: tuple[str, ...] = get_args(Style)
_SPLIT = ("column", "row", "channels")  # the styles that leave a rank with a part of a module's features
_SAMPLES = 2
_INITIALISED_ELEMENTS = 1 << 22  # of one tensor: larger ones would take seconds
_BUILT_ELEMENTS = 1 << 25  # of all parameters: larger models would take seconds to build


@dataclass(frozen=True)
class Broken:
    """One rule that a model breaks. rule: of `models/spec.py`; where: a file and line, or the name of a module."""

    rule: str
    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem} (rule: {self.rule})"


def check(spec: ModelSpec[C], config: C) -> None:
    """Raise ModelError with the first rule that a model breaks, and how many more it does."""
    found = broken(spec, config)
    if found:
        more = f"; and {len(found) - 1} more, see paralab check-model" if len(found) > 1 else ""
        raise ModelError(f"{spec.name} breaks a rule that strategies rely on: {found[0]}{more}")


def broken(spec: ModelSpec[C], config: C) -> list[Broken]:
    """Return the rules that a model breaks; those that build on a broken one are not looked at."""
    found = list(_structure(_Subject(spec, config)))
    if spec.with_blocks is not None:  # the others are alike
        config = spec.with_blocks(config, min(2, len(spec.blocks(config))))
    for rules in (_values, _passes, _plan):
        found = found or list(rules(_Subject(spec, config)))
    return found


class _Subject(Generic[C]):
    """A model under check: what it is made from, and where its parts stand in its file."""

    def __init__(self, spec: ModelSpec[C], config: C) -> None:
        self.spec, self.config = spec, config
        self.file = _file_of(spec.build)

    def model(self) -> Any:
        return self.spec.on_meta(self.config)

    def batch(self) -> tuple[tuple[Tensor, ...], Tensor]:
        inputs, targets = self.spec.example(self.config, _SAMPLES)
        return tuple(x.to("meta") for x in inputs), targets.to("meta")

    def place(self, thing: object) -> str:
        """Return file and line of the class or function that something is or comes from."""
        kind = thing if inspect.isfunction(thing) or inspect.isclass(thing) else type(thing)
        try:
            return f"{Path(inspect.getsourcefile(kind) or '').name}:{inspect.getsourcelines(kind)[1]}"
        except (OSError, TypeError):
            return getattr(kind, "__name__", str(kind))

    def line_of(self, error: BaseException) -> str:
        """Return where in the model's own file an error came from."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == self.file]
        return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else self.spec.name

    def line_now(self) -> str:
        """Return the line of the model's own file that is being run."""
        frame = sys._getframe()
        while frame is not None and frame.f_code.co_filename != self.file:
            frame = frame.f_back  # type: ignore[assignment]
        return f"{Path(self.file).name}:{frame.f_lineno}" if frame is not None else self.spec.name


def _file_of(build: Callable[[C], nn.Module]) -> str:
    try:
        return inspect.getsourcefile(build) or ""
    except TypeError:
        return ""


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _structure(subject: _Subject) -> Iterator[Broken]:
    """Yield what is wrong with blocks, with what stands before and after them, and with names that are shared."""
    spec, rule = subject.spec, "2, blocks"
    try:
        model = subject.model()
    except Exception as error:
        yield Broken("3, modules are created on the meta device", subject.line_of(error), _short(error))
        return
    here, modules = subject.place(model), dict(model.named_modules())
    blocks, (first, last) = spec.blocks(subject.config), spec.ends(subject.config)
    if missing := [name for name in blocks if name not in modules]:
        said = f"n_blocks says {len(blocks)}" if spec.block_names is None else f"block_names says {len(blocks)} names"
        hint = did_you_mean(missing[0], modules)
        yield Broken(rule, here, f"{said}, and the model has no module {missing[0]}{hint}: name those that it has")
        return
    there = {*modules, *dict(model.named_parameters(remove_duplicate=False))}
    for name in (*first, *last):
        if name not in there:
            yield Broken("2, first and last", here, f"{name!r} is in first or last, and the model has no such module")
    for name in beside(model, blocks) if spec.names_blocks and spec.cut is None and blocks else ():
        if name not in (*first, *last, *blocks):
            side, place = (
                "first (it runs before the blocks) or last (after them)",
                subject.place(modules.get(name, model)),
            )
            kind = "module" if name in modules else "parameter"
            yield Broken("2, first and last", place, f"{kind} {name!r} is in neither: name it in {side}")
    names, tied = dict(model.named_parameters(remove_duplicate=False)), spec.tied_in(subject.config)
    for name, origin in tied.items():
        if name not in names or names[name] is not names.get(origin):
            yield Broken("tied", here, f"{name} is said to share the storage of {origin}, and does not")
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, parameter in names.items():
        if own[id(parameter)] != name and name not in tied:
            yield Broken("tied", here, f"{name} shares the storage of {own[id(parameter)]}: add it to tied")


_VALUES = "3, initialisation by name"


def _values(subject: _Subject) -> Iterator[Broken]:
    """Yield tensors that no initialisation reaches."""
    model = subject.model()
    yield from _kept_in_lists(subject, model)
    if subject.spec.init is None:
        yield from _built(subject)
        return
    state = model.state_dict(keep_vars=True)
    for name, module in model.named_modules():
        for key, _ in plain_tensors(module):
            problem = f"self.{key} of {name or 'the model'} is a plain tensor, which stays on the meta device"
            yield Broken(
                _VALUES, subject.place(module), f"{problem}: register it as a buffer, or compute it in forward"
            )
    for name, _ in model.named_buffers():
        if name not in state:
            owner = model.get_submodule(name.rpartition(".")[0])
            problem = f"buffer {name} is not persistent: no initialisation reaches it, and it is in no checkpoint;"
            advice = "leave persistent=False out, or compute it in forward"
            yield Broken(_VALUES, subject.place(owner), f"{problem} {advice}")
    for name, tensor in state.items():
        if tensor.numel() <= _INITIALISED_ELEMENTS and (failed := _initialised(subject, name, tensor)):
            yield Broken(_VALUES, *failed)


def _kept_in_lists(subject: _Subject, model: nn.Module) -> Iterator[Broken]:
    """Yield tensors in lists and dicts of a module, which nothing finds there."""
    for name, module in model.named_modules():
        for key, held in vars(module).items():
            values = held.values() if isinstance(held, dict) else held if isinstance(held, (list, tuple)) else ()
            if not key.startswith("_") and any(isinstance(value, Tensor) for value in values):
                problem = f"self.{key} of {name or 'the model'} is a {type(held).__name__} with tensors,"
                needed = "which stay on the meta device: register them as buffers, or compute them in forward"
                yield Broken(_VALUES, subject.place(module), f"{problem} {needed}")


def _built(subject: _Subject) -> Iterator[Broken]:
    """Yield values of the model's own `__init__` that the seed does not decide."""
    spec, config = subject.spec, subject.config
    if sum(p.numel() for p in subject.model().parameters()) > _BUILT_ELEMENTS:
        return
    rule, pair = "3, values of its own __init__", []
    for other in (7, 8):
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(other)
                pair.append(spec.built(config, seed=0).state_dict())
        except Exception as error:
            yield Broken(rule, subject.line_of(error), f"the model cannot be built on a CPU: {_short(error)}")
            return
    for name, tensor in pair[0].items():
        if not torch.equal(tensor, pair[1][name]):
            problem = f"{name} has other values when the model is built again from the same seed: ranks would differ;"
            yield Broken(rule, subject.place(subject.model()), f"{problem} draw it from torch's own generator")


def _initialised(subject: _Subject, name: str, tensor: Tensor) -> tuple[str, str] | None:
    """Return where and how the initialisation of one tensor fails."""
    init, filled = subject.spec.init, []
    assert init is not None
    where = subject.place(init)
    for unset in (7, 8):
        origin = subject.spec.tied_in(subject.config).get(name, name)
        full = torch.full(tensor.shape, unset, dtype=tensor.dtype)
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(unset)
                init(subject.config, origin, full, torch.Generator().manual_seed(0))
        except Exception as error:
            return subject.line_of(error), f"init fails for {name} of shape {tuple(tensor.shape)}: {_short(error)}"
        filled.append(full)
    if torch.equal(*filled):
        return None
    if (filled[0] == 7).any() and (filled[1] == 8).any():
        return where, f"init leaves {name} of shape {tuple(tensor.shape)} without a value"
    return where, f"init draws {name} from another generator than the one it is given: layouts would begin differently"


class _Random(TorchDispatchMode):
    """Notes which operations draw random numbers, and the line that they are called from."""

    def __init__(self, subject: _Subject) -> None:
        super().__init__()
        self.subject, self.found = subject, dict[str, str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and self._draws(func, args, kwargs or {}):
            self.found.setdefault(self.subject.line_now(), str(func.overloadpacket).rpartition(".")[2])
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _draws(func: Any, args: Any, kwargs: Any) -> bool:
        """Attention draws only where it has a dropout."""
        named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        return "attention" not in str(func) or bool(named.get("dropout_p", 0.0))


def _passes(subject: _Subject) -> Iterator[Broken]:
    """Yield what is wrong with the loss, with random numbers, and with the cut into stages."""
    model, (inputs, targets) = subject.model().train(), subject.batch()
    random = _Random(subject)
    try:
        with random:
            loss = model(*inputs, targets=targets)
    except Exception as error:
        yield Broken("1, forward(*inputs, targets=None)", subject.line_of(error), _short(error))
        return
    for place, operation in random.found.items():
        problem = f"{operation} draws random numbers in forward: recomputation and split batches would draw others;"
        yield Broken("no random numbers, dropout included", place, f"{problem} leave dropout out")
    if not isinstance(loss, Tensor) or loss.shape != () or loss.dtype != torch.float32:
        shown = f"{loss.dtype} of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        problem = f"forward with targets returns {shown}: the mean loss is needed, fp32 of shape ()"
        yield Broken("1, the mean loss", subject.place(type(model).forward), problem)
        return
    try:
        model(*inputs)
    except Exception as error:
        yield Broken("1, the prediction without targets", subject.line_of(error), _short(error))
    yield from _stages(subject)


def _stages(subject: _Subject) -> Iterator[Broken]:
    """Run the model as two stages of a pipeline."""
    spec, config, rule = subject.spec, subject.config, "2, a stage is a copy without the rest"
    if len(spec.blocks(config)) < 2 or not spec.names_blocks:  # one that claims nothing may be no pipeline
        return
    inputs, targets = subject.batch()
    first, last = (
        cut_stage(copy.deepcopy(subject.model()), spec=spec, config=config, layout=Layout(pp=2), stage=stage)
        for stage in range(2)
    )
    try:
        sent = first(*inputs)
        sent = sent if isinstance(sent, tuple) else (sent,)
        if not all(isinstance(x, Tensor) and x.is_floating_point() for x in sent):
            got = ", ".join(str(x.dtype) if isinstance(x, Tensor) else type(x).__name__ for x in sent)
            problem = f"the first stage passes on {got}: a tensor or a tuple of floating-point tensors is needed"
            yield Broken(rule, subject.place(type(first).forward), problem)
            return
        loss = last(*sent, targets=targets)
    except Exception as error:
        problem = f"the model cut in two fails: {_short(error)}; forward has to skip what is None"
        yield Broken(rule, subject.line_of(error), problem)
        return
    if not isinstance(loss, Tensor) or loss.shape != ():
        yield Broken(rule, subject.place(type(last).forward), "the last stage does not return the loss")


def _plan(subject: _Subject) -> Iterator[Broken]:
    """Yield what is wrong with the tensor plan: patterns, styles, and splits that do not meet again."""
    spec = subject.spec
    plan, modules = spec.tensor_plan(subject.config), dict(subject.model().named_modules())
    found = [
        Broken("tensor_plan", subject.place(spec.tensor_plan), problem)
        for pattern, style in plan.items()
        if (problem := _misplanned(pattern, style, modules))
    ]
    yield from found
    yield from _sequence(subject, plan, modules)
    if plan and not found and "tensor" not in spec.refuses:
        yield from _split(subject, plan)


def _misplanned(pattern: str, style: str, modules: Mapping[str, nn.Module]) -> str:
    """Return what is wrong with one line of a plan, nothing where it is right."""
    if style not in _STYLES:
        hint = did_you_mean(style, _STYLES)
        return f"style {style!r} of {pattern!r} is unknown{hint}: use one of {', '.join(_STYLES)}"
    matched = {name: module for name, module in modules.items() if fnmatchcase(name, pattern)}
    if not matched:
        return f"{pattern!r} matches no module of the model{did_you_mean(pattern, modules)}"
    for name, module in matched.items():
        if needed := _unsuited(style, module):
            return f"{name} is a {type(module).__name__}, and style {style!r} is for {needed}"
    return ""


def _unsuited(style: str, module: nn.Module) -> str:
    """Return what a style is for, where a module is nothing of the kind."""
    kinds: dict[str, tuple[tuple[type, ...], str]] = {
        "column": ((nn.Linear, nn.Conv2d), "nn.Linear and nn.Conv2d"),
        "row": ((nn.Linear, nn.Conv2d), "nn.Linear and nn.Conv2d"),
        "vocab_embedding": ((nn.Embedding,), "nn.Embedding"),
        "vocab_loss": ((Reducing,), "a module that is Reducing over tp, as paralab.models.cross_entropy"),
    }
    types, needed = kinds.get(style, ((), ""))
    if types and not isinstance(module, types):
        return needed
    if style == "row" and isinstance(module, nn.Conv2d) and module.bias is not None:
        return "a convolution without bias: every rank would add it"
    return ""


def _sequence(subject: _Subject, plan: Mapping[str, Style], modules: Mapping[str, nn.Module]) -> Iterator[Broken]:
    spec, rule, where = subject.spec, "sequence parallelism", subject.place(subject.spec.tensor_plan)
    problems = spec.sequence_problems(subject.config)
    yield from (Broken(rule, where, problem) for problem in problems)
    if not spec.sequence_parallel or problems:
        return
    whole = [pattern for pattern, style in plan.items() if style == "scatter_sequence"]
    for name, module in modules.items():
        if not list(module.parameters(recurse=False)) or any(fnmatchcase(name, pattern) for pattern in plan):
            continue
        if not any(fnmatchcase(name, f"{pattern}.*") for pattern in whole):
            problem = f"{name} sees a piece of the sequence and is not in the plan: nobody would add up its gradient;"
            yield Broken(rule, where, f"{problem} add it as 'sequence', 'column' or 'row'")


def _split(subject: _Subject, plan: Mapping[str, Style]) -> Iterator[Broken]:
    """Run the model with the shapes that one of several tensor ranks has."""
    spec, config, rule = subject.spec, subject.config, "tensor_plan"
    divides = spec.tensor_divides(config)
    ranks = next((n for n in range(2, 17) if all(number % n == 0 for number in divides.values())), None)
    if ranks is None:
        return
    model = subject.model().train()
    for name, module in list(model.named_modules()):
        for pattern, style in plan.items():
            if fnmatchcase(name, pattern) and style in _SPLIT and (odd := _take_part(module, style, ranks)):
                problem = f"{name} has {odd}, which {ranks} ranks do not divide: add the number to tensor_divides"
                yield Broken("tensor_divides", subject.place(spec.tensor_divides), problem)
                return
    inputs, targets = subject.batch()
    try:
        model(*inputs, targets=targets)
    except Exception as error:
        problem = f"split over {ranks} ranks as the plan says, shapes do not meet: {_short(error)};"
        advice = "a module on the way from 'column' to 'row' is missing in the plan"
        yield Broken(rule, subject.line_of(error), f"{problem} {advice}")


def _take_part(module: nn.Module, style: str, ranks: int) -> str:
    """Leave a module what one of several ranks holds of it. Return what does not divide, if anything."""
    dim = 1 if style == "row" else 0
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, tensor in tensors:
        if tensor.dim() == 0 or (style == "row" and name != "weight"):
            continue
        if tensor.shape[dim] % ranks:
            return f"{tensor.shape[dim]} {'inputs' if style == 'row' else 'outputs'}"
        part = tensor.detach().chunk(ranks, dim=dim)[0]
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, nn.Parameter(part))
        else:
            module.register_buffer(name, part)
    for attribute in ("num_features", "num_channels", "num_groups"):
        if hasattr(module, attribute):
            setattr(module, attribute, getattr(module, attribute) // ranks)
    return ""
