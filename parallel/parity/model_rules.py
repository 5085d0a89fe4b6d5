"""The rules of `models/spec.py`, applied to a model on the meta device: which one it breaks, where, and what is needed.

Nothing is trained and no process is started. A forward pass on the meta device shows what a pipeline, a tensor split
or a parity check would trip over later, with the line of the model's own file.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from paralab.axes.pipeline.rules import cut_problem
from paralab.axes.precision import in_dtype
from paralab.axes.tensor.rules import plan_problems, sequence_problems, sizes_to_divide, split_problem
from paralab.errors import ModelError, did_you_mean
from paralab.models.configs import C
from paralab.models.found import beside, plain_tensors
from paralab.models.source_lines import file_of, line_of, place, short
from paralab.models.spec import SAMPLES_TRIED, ModelSpec, Style
from paralab.parity.mean_loss import mean_problem
from paralab.parity.watching import Drawn

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
    config = spec.with_few_blocks(config)
    for rules in (_values, _passes, _plan):
        found = found or list(rules(_Subject(spec, config)))
    return found


class _Subject(Generic[C]):
    """A model under check: what it is made from, and where its parts stand in its file."""

    def __init__(self, spec: ModelSpec[C], config: C) -> None:
        self.spec, self.config = spec, config
        self.file = file_of(spec.build)

    def model(self) -> Any:
        return self.spec.on_meta(self.config)

    def batch(self) -> tuple[tuple[Tensor, ...], Tensor]:
        inputs, targets = self.spec.example(self.config, SAMPLES_TRIED)
        return tuple(x.to("meta") for x in inputs), targets.to("meta")

    def line_of(self, error: BaseException) -> str:
        """Return where in the model's own file an error came from."""
        return line_of(error, self.spec.build, otherwise=self.spec.name)

    def line_now(self) -> str:
        """Return the line of the model's own file that is being run."""
        frame = sys._getframe()
        while frame is not None and frame.f_code.co_filename != self.file:
            frame = frame.f_back  # type: ignore[assignment]
        return f"{Path(self.file).name}:{frame.f_lineno}" if frame is not None else self.spec.name


def _structure(subject: _Subject) -> Iterator[Broken]:
    """Yield what is wrong with blocks, with what stands before and after them, and with names that are shared."""
    spec, rule = subject.spec, "2, blocks"
    try:
        model = subject.model()
    except Exception as error:  # of the model
        cause = error.__cause__ or error
        yield Broken("3, modules are created on the meta device", subject.line_of(cause), short(cause))
        return
    here, modules = place(model), dict(model.named_modules())
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
            side = "first (it runs before the blocks) or last (after them)"
            kind, where = "module" if name in modules else "parameter", place(modules.get(name, model))
            yield Broken("2, first and last", where, f"{kind} {name!r} is in neither: name it in {side}")
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
            yield Broken(_VALUES, place(module), f"{problem}: register it as a buffer, or compute it in forward")
    for name, _ in model.named_buffers():
        if name not in state:
            owner = model.get_submodule(name.rpartition(".")[0])
            problem = f"buffer {name} is not persistent: no initialisation reaches it, and it is in no checkpoint;"
            advice = "leave persistent=False out, or compute it in forward"
            yield Broken(_VALUES, place(owner), f"{problem} {advice}")
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
                yield Broken(_VALUES, place(module), f"{problem} {needed}")


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
        except Exception as error:  # of the model
            yield Broken(rule, subject.line_of(error), f"the model cannot be built on a CPU: {short(error)}")
            return
    for name, tensor in pair[0].items():
        if not torch.equal(tensor, pair[1][name]):
            problem = f"{name} has other values when the model is built again from the same seed: ranks would differ;"
            yield Broken(rule, place(subject.model()), f"{problem} draw it from torch's own generator")


def _initialised(subject: _Subject, name: str, tensor: Tensor) -> tuple[str, str] | None:
    """Return where and how the initialisation of one tensor fails."""
    init, filled = subject.spec.init, []
    assert init is not None
    where = place(init)
    for unset in (7, 8):
        origin = subject.spec.tied_in(subject.config).get(name, name)
        full = torch.full(tensor.shape, unset, dtype=tensor.dtype)
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(unset)
                init(subject.config, origin, full, torch.Generator().manual_seed(0))
        except Exception as error:  # of the model
            return subject.line_of(error), f"init fails for {name} of shape {tuple(tensor.shape)}: {short(error)}"
        filled.append(full)
    if torch.equal(*filled):
        return None
    if (filled[0] == 7).any() and (filled[1] == 8).any():
        return where, f"init leaves {name} of shape {tuple(tensor.shape)} without a value"
    return where, f"init draws {name} from another generator than the one it is given: layouts would begin differently"


def _passes(subject: _Subject) -> Iterator[Broken]:
    """Yield what is wrong with the loss, with random numbers, and with the cut into stages."""
    model = subject.model().train()
    try:
        inputs, targets = subject.batch()
    except Exception as error:  # of the model
        where = line_of(error, subject.spec.example, otherwise=place(subject.spec.example))
        problem = f"example(config, {SAMPLES_TRIED}) fails ({short(error)})"
        yield Broken("example", where, f"{problem}: a tuple of inputs, and targets, are needed, all of them tensors")
        return
    random = Drawn(subject.line_now)
    try:
        with random:
            loss = model(*inputs, targets=targets)
    except Exception as error:  # of the model
        yield Broken("1, forward(*inputs, targets=None)", subject.line_of(error), short(error))
        return
    for where, operation in random.found.items():
        problem = f"{operation} draws random numbers in forward: recomputation and split batches would draw others;"
        yield Broken("no random numbers, dropout included", where, f"{problem} leave dropout out")
    if not isinstance(loss, Tensor) or loss.shape != () or loss.dtype != torch.float32:
        shown = f"{loss.dtype} of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        problem = f"forward with targets returns {shown}: the mean loss is needed, fp32 of shape ()"
        yield Broken("1, the mean loss", place(type(model).forward), problem)
        return
    if not subject.spec.smooth and (dtype := _loss_in_fp64(subject)) != torch.float64:
        problem = f"with weights in fp64 the loss is {dtype}, and a model that is not smooth is judged in fp64:"
        yield Broken("1, the mean loss", place(type(model).forward), f"{problem} use at_least_fp32(x) for x.float()")
    try:
        model(*inputs)
    except Exception as error:  # of the model
        yield Broken("1, the prediction without targets", subject.line_of(error), short(error))
    yield from _mean(subject)
    yield from _stages(subject)


def _mean(subject: _Subject) -> Iterator[Broken]:
    """Yield a loss that is no mean over samples: of a model whose author has not been held to it by tests."""
    spec, config = subject.spec, subject.config
    numel = sum(p.numel() for p in subject.model().parameters())
    if not (spec.is_built_in or spec.whole_batch or numel > _BUILT_ELEMENTS) and (found := mean_problem(spec, config)):
        yield Broken("1, the mean loss", *found)


def _loss_in_fp64(subject: _Subject) -> torch.dtype:
    inputs, targets = subject.batch()
    model = subject.spec.on_meta(subject.config, torch.float64)
    return model(*(in_dtype(x, torch.float64) for x in inputs), targets=in_dtype(targets, torch.float64)).dtype


def _stages(subject: _Subject) -> Iterator[Broken]:
    """Run the model as two stages of a pipeline, unless it names no blocks or says that it cannot be cut."""
    claims = subject.spec.names_blocks and not subject.spec.cannot(subject.config, "pp")
    if claims and (problem := cut_problem(subject.spec, subject.config)):
        yield Broken("2, a stage is a copy without the rest", *problem)


def _plan(subject: _Subject) -> Iterator[Broken]:
    """Yield what is wrong with the tensor plan: patterns, styles, and splits that do not meet again."""
    spec, where = subject.spec, place(subject.spec.tensor_plan)
    plan, modules = spec.tensor_plan(subject.config), dict(subject.model().named_modules())
    found = [Broken("tensor_plan", where, problem) for problem in plan_problems(plan, modules)]
    yield from found
    yield from _sequence(subject, plan, modules)
    if plan and not found and "tensor" not in spec.refuses and not spec.cannot(subject.config, "tp"):
        yield from _split(subject)


def _sequence(subject: _Subject, plan: Mapping[str, Style], modules: Mapping[str, nn.Module]) -> Iterator[Broken]:
    spec, rule, where = subject.spec, "sequence parallelism", place(subject.spec.tensor_plan)
    if not spec.sequence_parallel:
        return
    problems = sequence_problems(spec, subject.config)
    yield from (Broken(rule, where, problem) for problem in problems)
    if problems:
        return
    whole = [pattern for pattern, style in plan.items() if style in ("scatter_sequence", "whole_sequence")]
    for name, module in modules.items():
        if not list(module.parameters(recurse=False)) or any(fnmatchcase(name, pattern) for pattern in plan):
            continue
        if not any(fnmatchcase(name, f"{pattern}.*") for pattern in whole):
            problem = f"{name} sees a piece of the sequence and is not in the plan: nobody would add up its gradient;"
            yield Broken(rule, where, f"{problem} add it as 'sequence', 'column' or 'row'")


def _split(subject: _Subject) -> Iterator[Broken]:
    """Run the model with the shapes that one of several tensor ranks has."""
    spec, config = subject.spec, subject.config
    declared = spec.tensor_divides(config)
    ranks = next((n for n in range(2, 17) if all(number % n == 0 for number in declared.values())), None)
    if ranks is None:
        return
    for quantity, n in sizes_to_divide(spec, config).items():
        if n % ranks:
            problem = f"{quantity} are {n}, which {ranks} ranks do not divide: add the number to tensor_divides"
            yield Broken("tensor_divides", place(spec.tensor_divides), problem)
            return
    if problem_found := split_problem(spec, config, ranks):
        yield Broken("tensor_plan", *problem_found)
