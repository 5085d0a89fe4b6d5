"""A module of a program's own, as the rest of the house asks for a model: its `ModelSpec`, and what comes with it."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves, tree_map

from paralab.axes.blocks import blocks_of
from paralab.axes.precision import in_dtype
from paralab.axes.tensor.rules import plan_problems
from paralab.data.dataset import Batch
from paralab.errors import ConfigError, LayoutError, did_you_mean
from paralab.library.batches import Form
from paralab.library.pipeline import Pipeline, check_names
from paralab.library.sequences import Shared
from paralab.library.stages import Needs, leave_out, needs_of
from paralab.models.sequence import SequenceShape
from paralab.models.spec import Cut, ModelSpec, Style, at_least_fp32
from paralab.models.structure import find_blocks, find_tied, has_batch_norm, matching

Loss = Callable[..., Any]
Initialise = Callable[[str, Tensor, torch.Generator], None]


@dataclass(frozen=True)
class OwnConfig:
    """What tells one own module from another. architecture: a sha256 of the names and shapes of its tensors."""

    architecture: str
    task: str = "own"


class Forward:
    """The forward of an own module as engines call it: flat tensors in, the loss or what the next stage takes out.

    Tensors are (rows, ...), the loss (). form: how the tensors of a batch lie in it; set when the first batch is seen.
    noted: the terms of a loss that has several, of the micro-batches since they were last read.
    """

    def __init__(self, module: nn.Module, told: "Told") -> None:
        self.module, self.loss, self.pipeline = module, told.loss, told.pipeline
        self.shared = Shared(module, told.sequence)
        self.form: Form | None = None
        self.own: Callable[..., Any] | None = module.__dict__.get("forward")
        self.cut = Cut(range(0), first=True, last=True)
        self.noted: dict[str, list[Tensor]] = {}
        self.needs: Callable[[nn.Module], Needs]  # of a whole module: what its stages hold

    def __call__(self, *leaves: Tensor, targets: Tensor | tuple[Tensor, ...] | None = None) -> Any:
        try:
            out = self._run(leaves)
        except RuntimeError as error:
            if "mixed torch.Tensor and DTensor" not in str(error):
                raise
            raise LayoutError(
                f"{type(self.module).__name__} uses a split parameter outside of the forward of its own layer: call "
                "the layer instead, leave it out of tensor={...}, or name with blocks= the modules that are called as "
                f"a whole ({' '.join(str(error).split())[:120]})"
            ) from error
        if not self.cut.last:
            return out
        if targets is None:
            return out if isinstance(out, Tensor) else tuple(x for x in tree_leaves(out) if isinstance(x, Tensor))
        assert self.form is not None
        out = tree_map(lambda x: at_least_fp32(x) if isinstance(x, Tensor) and x.is_floating_point() else x, out)
        targets = self.shared.targets(targets) if self.loss is not None else targets
        loss = self._scalar(self._loss(out, self.form.targets_of(targets)))
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ConfigError(
                "the loss does not depend on any parameter that is trained: look for detach(), item() or no_grad() "
                f"between {type(self.module).__name__} and the loss"
            )
        return loss

    def _run(self, leaves: tuple[Tensor, ...]) -> Any:
        assert self.form is not None, "no batch was seen"
        if self.cut.first:
            self.shared.check(leaves)
        if self.cut.first and self.cut.last:
            forward = self.own or type(self.module).forward.__get__(self.module)
            return self.form.call(forward, leaves)
        assert self.pipeline is not None
        blocks = [block for _, block in sorted(blocks_of(self.module).items())]
        if not self.cut.first:
            return self.pipeline.run(self.module, self.cut, blocks, *leaves)
        return self.form.call(lambda *x, **named: self.pipeline.run(self.module, self.cut, blocks, *x, **named), leaves)

    def _loss(self, out: Any, targets: Any) -> Any:
        assert self.form is not None
        if self.loss is not None:
            return self.loss(out, targets)
        found = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
        return found if found is not None else out

    def _scalar(self, value: Any) -> Tensor:
        if isinstance(value, Mapping):
            for name, term in value.items():
                self.noted.setdefault(str(name), []).append(self._scalar(term).detach())
            return torch.stack([self._scalar(term) for term in value.values()]).sum()
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f"the loss is {got}: the mean over the samples is needed, a floating-point tensor of shape (), such as "
                "loss=lambda output, targets: torch.nn.functional.cross_entropy(output, targets)"
            )
        return at_least_fp32(value)


def forward_of(part: nn.Module) -> Forward:
    """Return the forward of a part that `spec_of` made, whatever stands around it by now."""
    forward: Forward = part.own_forward  # type: ignore[assignment]  # an attribute of ours
    return forward


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a program says of its module, as `parallelize` takes it. batch: an example, whose shapes count."""

    loss: Loss | None = None
    initialise: Initialise | None = None
    blocks: str | None = None
    tensor: Mapping[str, Style] | None = None
    pipeline: Pipeline | None = None
    sequence: SequenceShape | None = None
    experts: str | None = None
    batch: Batch | None = None


class _Own:
    """A module of a program's own as a `ModelSpec` asks for it. form: how a batch lies in its tensors, once seen."""

    def __init__(self, skeleton: nn.Module, told: Told, form: Callable[[], Form | None]) -> None:
        self.skeleton, self.told, self.form = skeleton, told, form
        self._needs: Needs | None = None  # the same for every stage

    def example(self, config: OwnConfig, rows: int) -> tuple[tuple[Tensor, ...], Tensor]:
        batch = self.told.batch
        if batch is None:
            raise LayoutError(
                "stages of a pipeline pass on tensors whose shapes have to be known: give parallelize an example=batch"
            )

        def of(x: Tensor) -> Tensor:
            return torch.zeros((rows, *x.shape[1:]), dtype=x.dtype)

        return tuple(map(of, batch.inputs)), of(batch.targets)

    def build(self, config: OwnConfig) -> nn.Module:
        module = copy.deepcopy(self.skeleton)
        forward = Forward(module, self.told)
        forward.form = self.form()
        forward.needs = lambda whole: self.needs(whole, config)
        module.forward = module.own_forward = forward  # type: ignore[assignment]
        return module

    def needs(self, whole: nn.Module, config: OwnConfig) -> Needs:
        if self._needs is None:
            inputs, _ = self.example(config, 1)
            form, pipeline = self.form(), self.told.pipeline
            assert pipeline is not None and form is not None
            dtype = next((p.dtype for p in whole.parameters() if p.is_floating_point()), torch.float32)
            self._needs = needs_of(whole, pipeline, form, tuple(in_dtype(x, dtype).to("meta") for x in inputs))
        return self._needs

    def init(self, config: OwnConfig, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        assert self.told.initialise is not None
        self.told.initialise(name, tensor, generator)


def spec_of(
    skeleton: nn.Module, told: Told, *, form: Callable[[], Form | None], architecture: str
) -> "ModelSpec[OwnConfig]":
    """Return what a module is to the rest of the house. skeleton: on the meta device. form, architecture: of it.

    Raises: LayoutError where blocks, tensor plan or pipeline name what the module does not have.
    """
    names, tensor = _blocks(skeleton, told.blocks), told.tensor or {}
    if problem := next(plan_problems(tensor, dict(skeleton.named_modules())), None):
        raise LayoutError(f"tensor={{...}}: {problem}")
    if told.pipeline is not None:
        check_names(told.pipeline, skeleton)
    own = _Own(skeleton, told, form)
    return ModelSpec(
        name=type(skeleton).__name__,
        sizes={"own": OwnConfig(architecture)},
        build=own.build,
        init=own.init,
        example=own.example,
        block_names=lambda config: names,
        cut=_cut,
        data=lambda config: "own",
        unit=lambda config: "points",
        tensor_plan=lambda config: tensor,
        sequence=lambda config: told.sequence,
        experts=told.experts,
        smooth=False,  # nobody knows: judged in fp64, in which kinks do not matter
        batch_statistics=lambda config: "rank" if has_batch_norm(skeleton) else "none",
        tied=find_tied(skeleton),
    )


def dropouts(module: nn.Module) -> list[str]:
    """Return the names of the modules that drop something."""
    return [
        name or "the model"
        for name, part in module.named_modules()
        if any(isinstance(share, float) and share > 0 for share in _shares(part))
    ]


def _shares(part: nn.Module) -> list[Any]:
    """Return what a module may drop: of torch's own, and of others by the names that they give it."""
    if isinstance(part, _DropoutNd):
        return [part.p]
    return [value for name, value in vars(part).items() if "drop" in name]


def _blocks(module: nn.Module, pattern: str | None) -> tuple[str, ...]:
    if pattern is None:
        return find_blocks(module)
    found = matching(module, pattern)
    every = dict(module.named_modules(remove_duplicate=False))
    for name in found:
        if isinstance(every[name], (nn.ModuleList, nn.ModuleDict)):
            raise LayoutError(
                f"{name} is a {type(every[name]).__name__}, which has no forward that a block could run: name what is "
                f"in it, such as blocks='{name}.*'"
            )
    if not found:
        names = {".".join([*name.split(".")[:-1], "*"]) for name, _ in module.named_modules() if name[-1:].isdigit()}
        raise LayoutError(
            f"blocks={pattern!r} matches no module{did_you_mean(pattern, names)}: use a pattern such as "
            f"{next(iter(sorted(names)), 'layers.*')}"
        )
    return found


def check_stages(module: nn.Module, names: tuple[str, ...]) -> None:
    """Raise LayoutError where the stages of a module would not be all of it.

    module: the whole one, on the meta device. names: of its blocks.
    """
    every = dict(module.named_modules(remove_duplicate=False))
    first = {id(every[name]): name for name in names}
    for name in (f"{container}.{key}" for container in _containers(names) for key in every[container]._modules):
        if name not in names and id(every[name]) in first:
            raise LayoutError(
                f"{name} of {type(module).__name__} is {first[id(every[name])]} as well: a block that runs in two "
                "places cannot lie in one stage, make two of it or use a layout without pp"
            )
    forward_of(module).needs(module)


def _containers(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _cut(config: OwnConfig, module: nn.Module, cut: Cut) -> nn.Module:
    """Make a stage of a whole model, in place."""
    forward = forward_of(module)
    names: tuple[str, ...] = module.block_names  # type: ignore[assignment]
    assert forward.pipeline is not None and names, "check_axes refuses stages of what has none"
    needs = forward.needs(module)
    leave_out(module, needs.of(cut), [name for number, name in enumerate(names) if number not in cut.blocks])
    forward.cut = cut
    return module
