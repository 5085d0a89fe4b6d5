"""What a tensor plan has to keep, tried out on the meta device, and what to type where it does not."""

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import get_args

from torch import Tensor, nn

from paralab.axes.tensor import EXPERTS, is_gathered, style_of
from paralab.errors import LayoutError, did_you_mean
from paralab.layout import common_divisors
from paralab.models.configs import C
from paralab.models.source_lines import line_of, short
from paralab.models.spec import SAMPLES_TRIED, ModelSpec, Reducing, Style

STYLES: tuple[str, ...] = get_args(Style)
_IN_TERMS = ("column", "row", "experts")  # the styles of what is within a `whole_sequence`
_SPLIT = ("column", "row", "channels", "experts")  # the styles that leave a rank with a part of a module's features


def check(tp: int, spec: ModelSpec[C], config: C) -> None:
    """Raise LayoutError where a model has no plan, one that does not fit its modules, or sizes that do not divide."""
    plan = spec.tensor_plan(config)
    if not plan:
        raise LayoutError(
            without_plan(spec.name, _whole(spec, config), give="give its ModelSpec tensor_plan=lambda config: {plan}")
        )
    if problem := next(plan_problems(plan, dict(_whole(spec, config).named_modules())), None):
        raise LayoutError(f"tensor_plan of {spec.name}: {problem}")
    sizes = sizes_to_divide(spec, config)
    for quantity, n in sizes.items():
        if n % tp:
            fits = [str(degree) for degree in common_divisors(sizes.values())]
            nothing = "no tp does: leave its layer out of the plan, or change its size"
            use = f"use a tp of {', '.join(fits)}" if len(fits) > 1 else nothing
            what = f"{quantity}, {n}, in" if quantity.startswith("the ") else f"{quantity}={n} of"
            raise LayoutError(f"tp={tp} does not divide {what} {spec.name}: {use}")
    if not spec.is_built_in and (failed := split_problem(spec, config, tp)):
        raise LayoutError(f"{spec.name} cannot be split over tensor ranks: {': '.join(failed)}")


def sequence_problems(spec: ModelSpec[C], config: C) -> list[str]:
    """Return what in a model's plan cannot be split under /sp, which its spec claims."""
    lacking = spec.sequence_problems(config)
    return lacking or list(_gathered_problems(spec.tensor_plan(config), dict(_whole(spec, config).named_modules())))


@lru_cache(maxsize=8)
def _whole(spec: ModelSpec[C], config: C) -> nn.Module:
    return spec.on_meta(config)


def without_plan(name: str, model: nn.Module, *, give: str) -> str:
    """Say what a plan looks like, with the names of the model's own layers.

    give: what to type, with `{plan}` for the plan.
    """
    linear: dict[str, dict[str, nn.Linear]] = {}  # by the module that holds them, and by name
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            holder, _, last = path.rpartition(".")
            is_step = isinstance(model.get_submodule(holder), nn.Sequential)  # mlp.0 and mlp.2 are not alike
            pattern = _pattern(holder)
            named = ".".join(filter(None, (pattern, last if is_step else _pattern(last))))
            linear.setdefault(pattern, {}).setdefault(named, module)
    inside = {holder: layers for holder, layers in linear.items() if holder} or linear
    styles = {path: style for layers in inside.values() for path, style in _styles(layers)}
    if not styles:
        return f"{name} has no tensor plan, and no two Linear layers in one module to split: use a layout without tp"
    shown = ", ".join(f'"{path}": "{style}"' for path, style in styles.items())
    typed = give.replace("{plan}", f"{{{shown}}}")
    return f"{name} has no tensor plan: {typed}, where each row takes what the columns before it made"


def _pattern(path: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def _styles(layers: Mapping[str, nn.Linear]) -> Iterator[tuple[str, str]]:
    """Yield (name, style) of the layers of one module, in their order: columns, then the row that returns to the width.

    Of several that return to it in turn (q, k, v, out) the last one is the row.
    """
    names, columns = list(layers), 0
    width = layers[names[0]].in_features
    for i, name in enumerate(names):
        returns = [layers[later].out_features == width for later in names[i : i + 2]]
        if columns and (i + 1 == len(names) or returns == [True, False]):
            yield name, "row"
            columns = 0
        elif i + 1 < len(names):
            yield name, "column"
            columns += 1


def plan_problems(plan: Mapping[str, str], modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Yield what is wrong with the lines of a plan. modules: of the whole model, by full name."""
    for pattern, style in plan.items():
        if style not in STYLES:
            hint, use = did_you_mean(style, STYLES), ", ".join(STYLES)
            yield f"style {style!r} of {pattern!r} is unknown{hint}: use one of {use}"
            continue
        matched = {name: module for name, module in modules.items() if fnmatchcase(name, pattern)}
        if not matched:
            patterns = {_pattern(name) for name in modules}
            hint = did_you_mean(pattern, sorted(patterns - {""}))
            yield f"{pattern!r} matches no module of the model{hint}: use the full names of its modules"
        wrong = ((name, module, _unsuited(style, module)) for name, module in matched.items())
        for name, module, needed in wrong:
            if needed:
                yield f"{name} is a {type(module).__name__}, and style {style!r} is for {needed}"
                break


def _gathered_problems(plan: Mapping[str, Style], modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Yield what cannot be split within a module for which /sp gathers the sequence. modules: as in `plan_problems`."""
    for name, module in modules.items():
        style = style_of(name, plan) if is_gathered(name, plan) else None
        if style is not None and style not in _IN_TERMS:
            use = ", ".join(_IN_TERMS)
            yield f"{name} is within a module of style 'whole_sequence': style {style!r} is not there, use one of {use}"
        elif style == "row" and getattr(module, "bias", None) is not None:
            yield f"{name} is within a module of style 'whole_sequence', and each rank would add its bias: have none"


def _unsuited(style: str, module: nn.Module) -> str:
    """Return what a style is for, where a module is nothing of the kind."""
    kinds: dict[str, tuple[tuple[type, ...], str]] = {
        "column": ((nn.Linear, nn.Conv2d), "nn.Linear and nn.Conv2d"),
        "row": ((nn.Linear, nn.Conv2d), "nn.Linear and nn.Conv2d"),
        "column_gathered": ((nn.Linear,), "nn.Linear"),
        "row_of_whole": ((nn.Linear,), "nn.Linear"),
        "vocab_embedding": ((nn.Embedding,), "nn.Embedding"),
        "vocab_loss": ((Reducing,), "a module that is Reducing over tp, as paralab.models.cross_entropy"),
    }
    types, needed = kinds.get(style, ((), ""))
    if types and not isinstance(module, types):
        return needed
    if style == "experts" and any(getattr(getattr(module, name, None), "ndim", 0) != 3 for name in EXPERTS):
        return "a module with `up` (experts, columns, hidden) and `down` (experts, hidden, rows)"
    if style == "row" and isinstance(module, nn.Conv2d) and module.bias is not None:
        return "a convolution without bias: every rank would add it"
    return ""


@lru_cache(maxsize=8)
def sizes_to_divide(spec: ModelSpec[C], config: C) -> Mapping[str, int]:
    """Return the numbers that the tensor degree must divide, by a name for people: those of the spec come first."""
    found = dict(spec.tensor_divides(config))
    for name, module in _whole(spec, config).named_modules():
        style = next((s for pattern, s in spec.tensor_plan(config).items() if fnmatchcase(name, pattern)), None)
        for kind, n in _parts_of(module, style):
            found[f"the {kind} of {name}"] = n
    return found


# What the ranks divide of a weight of a style, and which dim of it that is.
_DIVIDED: Mapping[str, tuple[str, int]] = {
    "column": ("outputs", 0),
    "column_gathered": ("outputs", 0),
    "row": ("inputs", 1),
    "row_of_whole": ("inputs", 1),
    "channels": ("channels", 0),
    "vocab_embedding": ("vocabulary", 0),
    "vocab_loss": ("vocabulary", 0),
}


def _parts_of(module: nn.Module, style: Style | None) -> Iterator[tuple[str, int]]:
    weight = getattr(module, "weight", None)
    kind, dim = _DIVIDED.get(style or "", ("", 0))
    if kind and isinstance(weight, Tensor):
        yield kind, weight.shape[dim]
    if style == "channels" and isinstance(module, nn.GroupNorm):
        yield "groups", module.num_groups


@lru_cache(maxsize=16)
def split_problem(spec: ModelSpec[C], config: C, ranks: int) -> tuple[str, str] | None:
    """Return where and how a model fails with the shapes that one of several tensor ranks has; None where it passes.

    Of a model with `with_blocks`, two blocks are enough to see it.
    """
    config = spec.with_few_blocks(config)
    plan, model = spec.tensor_plan(config), spec.on_meta(config).train()
    leave_part(model, plan, ranks, _SPLIT)
    try:
        inputs, targets = spec.example(config, SAMPLES_TRIED)
    except LayoutError:  # of a program that has not said what its batches are
        return None
    try:
        model(*(x.to("meta") for x in inputs), targets=targets.to("meta"))
    except Exception as error:  # of the model's own code, which may raise any
        problem = f"split over {ranks} ranks as the plan says, shapes do not meet: {short(error)};"
        advice = (
            "a module on the way from 'column' to 'row' is missing in the plan, or forward uses a number of the whole "
            "layer (view(..., -1, head_dim) has the heads that are there)"
        )
        return line_of(error, spec.build, otherwise=spec.name), f"{problem} {advice}"
    return None


def leave_part(
    model: nn.Module,
    plan: Mapping[str, Style],
    ranks: int,
    styles: Collection[str] = (*_SPLIT, "vocab_embedding", "vocab_loss"),
) -> None:
    """Leave the modules of a model, in place, what one of several tensor ranks holds of those with these styles."""
    for name, module in list(model.named_modules()):
        style = next((s for pattern, s in plan.items() if fnmatchcase(name, pattern)), None)
        if style is not None and style in styles:
            _take_part(module, style, ranks)


def _take_part(module: nn.Module, style: str, ranks: int) -> None:
    """Leave a module what one of several ranks holds of it."""
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if tensor.dim() == 0 or (style == "row" and name != "weight"):
            continue
        dim = EXPERTS[name] if style == "experts" else int(style == "row")
        part = tensor.detach().chunk(ranks, dim=dim)[0]
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, nn.Parameter(part))
        else:
            module.register_buffer(name, part)
    for attribute in ("num_features", "num_channels", "num_groups"):
        if hasattr(module, attribute):
            setattr(module, attribute, getattr(module, attribute) // ranks)
