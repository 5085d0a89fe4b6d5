"""What a model file tells the rest of the project, and the registry of models.

A model is one file with a frozen config, a plain `nn.Module` and a `ModelSpec`. It never imports
torch.distributed. The module follows four rules, and every strategy works from these alone:

1. `forward(*inputs, targets=None)` returns the mean loss over the samples it was given (fp32, shape ()) when
   `targets` is there, and the prediction when it is not.
2. The repeated part is a list of blocks, such as `self.blocks`, a ModuleDict with keys "0", "1", ...; what runs before
   it is named in `spec.first`, what runs after it (loss included) in `spec.last`, or found to be what is defined before
   and after it. A pipeline stage is a copy in which the other blocks are deleted and the other named modules are None:
   `forward` skips what is None, loops over the blocks that are there, takes what the previous stage returned (a tensor
   or a tuple of floating-point tensors) and returns what the next takes. `spec.block_names` names blocks that are not
   found, and `spec.cut` says what a stage is of a model that is built otherwise.
3. Modules are created on the meta device, without values (`spec.on_meta`): `spec.init` gives every parameter and
   persistent buffer its value from a generator seeded by its full name. Without `init` each process builds the whole
   model once on its CPU (`spec.built`), and takes the values of its own `__init__`.
4. A module whose result depends on ranks it cannot see holds `all_reduce` (see `Reducing`), or `all_gather`
   (`paralab.models.gathering`).

One whose sequences ranks may share also takes positions and attends as `paralab.models.sequence` says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, Literal

import torch
from torch import Tensor, nn

from paralab.errors import ConfigError, ModelError, did_you_mean
from paralab.models.configs import UNITS, C, Unit
from paralab.models.declared import check_fields, check_module
from paralab.models.found import Found, WithoutInit, built, count_flops, look_into
from paralab.models.sequence import SequenceShape
from paralab.models.source_lines import line_of, short

if TYPE_CHECKING:
    from paralab.models.converter import Converter

Statistics = Literal["none", "rank", "global"]
SAMPLES_TRIED = 2  # of a batch that a model is tried on, without training
# How the ranks of a tensor axis share a module. The sequence is split under /sp alone, between the last three.
#   column            Linear or Conv2d: each rank has a part of its outputs; its input is whole. Always before a row
#   row               Linear or Conv2d: each rank has a part of its inputs, which a column made; its outputs are summed
#   column_gathered   column whose outputs are gathered: what follows is whole on every rank
#   row_of_whole      row whose input is whole on every rank: each takes its part of it
#   experts           MLPs in two tensors, `up` (experts, columns, hidden) and `down` (experts, hidden, rows): each rank
#                     has a part of the columns and rows of every expert; outputs are summed
#   heads             norm within each head: whole on every rank, which has only its own heads; gradients are summed
#   channels          norm between a column and a row convolution: each rank has the channels that it was given
#   vocab_embedding   Embedding: each rank has a part of the vocabulary; its outputs are summed
#   vocab_loss        output layer and loss: each rank has a part of the vocabulary; the module reduces the softmax
#   sequence          whole on every rank (a norm); under /sp it sees a piece of the sequence, gradients are summed
#   scatter_sequence  whole on every rank; under /sp each keeps a piece of the sequence of its output
#   whole_sequence    a mixture of experts: under /sp its input is gathered, and the first thing that it returns is
#                     scattered; inside, each rank has a term of that, and of the gradients of what is whole
Style = Literal[
    "column",
    "row",
    "column_gathered",
    "row_of_whole",
    "experts",
    "heads",
    "vocab_embedding",
    "vocab_loss",
    "channels",
    "sequence",
    "scatter_sequence",
    "whole_sequence",
]


def keep(tensor: Tensor, op: str = "sum") -> Tensor:
    """Return a tensor of any shape as it is: the reduction over a single rank."""
    return tensor


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Return a tensor of any shape in fp32, or as it is when it is wider.

    Losses and statistics are computed in this dtype.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Reducing:
    """Mixin of modules that combine values over the ranks of one axis, inside forward and backward.

    `all_reduce(tensor, op)` with op "sum" or "max" returns the reduction over `axis`, not differentiable:
    the module calls it inside its own autograd function. A strategy replaces it; alone it is the identity.
    `ranks` is the number of ranks it reduces over.
    """

    axis: Literal["dp", "tp"]
    ranks: int = 1
    all_reduce: Callable[[Tensor, str], Tensor] = staticmethod(keep)


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of forward and backward for one sample, and the name of the formula."""

    per_sample: float
    formula: str


@dataclass(frozen=True)
class Cut:
    """What a pipeline stage keeps of a model: these blocks, and what runs before and after all blocks, or not."""

    blocks: range
    first: bool
    last: bool


class StandIn(nn.Module):
    """Base of modules without parameters that a stage has in place of what other stages hold; none is a block."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelSpec(Generic[C]):
    """Declare a model to strategies, benchmarks and tests. Callables take the config of one size.

    Five fields are needed: name, sizes, build, example and data. What is left out of the others is found in the module
    itself, on the meta device: ask the methods for it, which know what was given and what was found.
    """

    name: str
    sizes: Mapping[str, C]  # preset name -> frozen config dataclass
    custom_size: Callable[[str], C | None] = lambda text: (
        None
    )  # config of a size that is no preset; None for another form
    custom_form: str = ""  # what such a size looks like, for messages
    size_of: Callable[[C], str] | None = None  # the size that a config has: a preset, or what custom_size reads
    default_size: str = ""  # trains on a laptop; the first of the sizes
    tiny_size: str = ""  # a second or less a step: what tests use; the default size
    build: Callable[[C], nn.Module]
    init: Callable[[C, str, Tensor, torch.Generator], None] | None = None  # config, full name, full CPU tensor to fill
    example: Callable[[C, int], tuple[tuple[Tensor, ...], Tensor]]  # batch size -> inputs, targets: shapes, dtypes
    n_blocks: Callable[[C], int] | None = None  # modules named blocks.0, blocks.1, ...
    block_names: Callable[[C], tuple[str, ...]] | None = None  # full names of blocks that are called otherwise
    cut: Callable[[C, nn.Module, Cut], nn.Module] | None = None  # whole model -> stage, where rule 2 does not hold
    with_blocks: Callable[[C, int], C] | None = None  # the same config with so many blocks, or the fewest above
    first: tuple[str, ...] | None = None
    last: tuple[str, ...] | None = None
    flops: Callable[[C], Flops] | None = None
    data: Callable[[C], str]  # data set used without --data
    unit: Callable[[C], Unit] | None = None
    units_per_sample: Callable[[C], int] | None = None
    tensor_plan: Callable[[C], Mapping[str, Style]] = lambda config: {}  # fnmatch pattern of module -> style
    tensor_divides: Callable[[C], Mapping[str, int]] = lambda config: {}  # what tp must divide, by name
    experts: str | None = None  # fnmatch pattern of modules that rows are sorted by expert for (paralab.models.mixtral)
    sequence_parallel: bool = False
    sequence: Callable[[C], SequenceShape | None] = lambda config: None  # that may be split over ranks; None: may not
    smooth: bool = True  # False: has kinks (ReLU, max), where the last bit of an input can flip a gradient
    batch_statistics: Callable[[C], Statistics] | None = None  # over which samples of a batch norms take theirs
    whole_batch: bool = False  # True: the loss is over all samples of a step together, and no mean over samples
    tied: Mapping[str, str] | None = None  # parameter -> the parameter whose storage it shares
    hugging_face: "Callable[[], Converter[C]] | None" = None  # what converts to and from transformers
    refuses: Mapping[str, str] = field(default_factory=dict)  # strategy -> why it cannot be in a layout of this model
    cannot: Callable[[C, str], str] = lambda config, axis: ""  # "tp" or another axis -> why it cannot split this config
    notes: Callable[[C], tuple[str, ...]] = lambda config: ()  # lines to print before a run: what is not as one expects

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.sizes:
            raise ModelError(f'ModelSpec {self.name} has no sizes: give one such as sizes={{"tiny": Config()}}')
        object.__setattr__(self, "default_size", self.default_size or next(iter(self.sizes)))
        object.__setattr__(self, "tiny_size", self.tiny_size or self.default_size)
        for name in (self.default_size, self.tiny_size):
            if name not in self.sizes:
                hint = did_you_mean(name, self.sizes)
                raise ModelError(f"size {name!r} of ModelSpec {self.name} is not in sizes{hint}: add it, or name one")

    def config(self, size: str | None = None) -> C:
        """Return the config of a preset or of a custom size.

        Raises: KeyError when it is neither; ValueError when the numbers of a custom one do not fit together; ModelError
        for a config that does not say what it is for, or that is no frozen dataclass.
        """
        name = (size or self.default_size).lower()
        custom = self.custom_size(name) if name not in self.sizes else None
        return self._checked(custom if custom is not None else self.sizes[name])

    def _checked(self, config: Any) -> Any:
        kind = type(config).__name__
        if not is_dataclass(config) or isinstance(config, type):
            raise ModelError(f"a size of {self.name} is a {kind}: an object of a frozen dataclass is needed")
        try:
            hash(config)
        except TypeError as error:
            needed = "@dataclass(frozen=True) is needed, with numbers, words and tuples as fields"
            raise ModelError(f"config {kind} of {self.name} cannot be a key ({error}): {needed}") from None
        task, known = getattr(config, "task", None), ", ".join(UNITS)
        if task is None:
            raise ModelError(f'{kind} has no task: add the field task: str = "text", or another of {known}')
        if task not in UNITS and self.unit is None:
            raise ModelError(f"task {task!r} of {kind} is unknown{did_you_mean(str(task), UNITS)}: use one of {known}")
        data: Any = self.data
        if not isinstance(name := data(config), str):
            raise ModelError(f"data of {self.name} returns a {type(name).__name__}: the name of a data set is needed")
        return config

    @property
    def is_built_in(self) -> bool:
        """Whether its module is one of this package, which tests hold to the rules: others are tried out where used."""
        return getattr(self.build, "__module__", "").startswith(f"{__package__}.")

    @property
    def names_blocks(self) -> bool:
        """Whether it says which modules are the blocks, or what is around them, and so claims that rule 2 holds."""
        return any(given is not None for given in (self.n_blocks, self.block_names, self.cut, self.first, self.last))

    # --- what was given, or else is found

    def blocks(self, config: C) -> tuple[str, ...]:
        """Return the full names of the blocks, in the order in which they run; () for a model that has none."""
        named = self._named_blocks(config)
        return _found(self, config).blocks if named is None else named

    def ends(self, config: C) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of what runs before all blocks, and of what runs after them."""
        if self.first is None and self.last is None:
            return _found(self, config).first, _found(self, config).last
        return self.first or (), self.last or ()

    def tied_in(self, config: C) -> Mapping[str, str]:
        """Return the parameters that share the storage of another: name -> name of the other."""
        return _found(self, config).tied if self.tied is None else self.tied

    def statistics_over(self, config: C) -> Statistics:
        """Return over which samples norms take statistics: none; those that a rank sees together; those of all."""
        if self.batch_statistics is not None:
            return self.batch_statistics(config)
        return "rank" if _found(self, config).batch_norm else "none"

    def flops_of(self, config: C) -> Flops:
        """Return the operations of one sample by the given formula, or as they are counted on the meta device."""
        return self.flops(config) if self.flops is not None else _counted(self, config)

    def unit_of(self, config: C) -> Unit:
        """Return what throughput counts."""
        return self.unit(config) if self.unit is not None else UNITS[config.task]

    def units_in_sample(self, config: C) -> int:
        """Return how many units a sample has: the positions of a text, 1 of anything else."""
        if self.units_per_sample is not None:
            return self.units_per_sample(config)
        return getattr(config, "seq_len", 1) if self.unit_of(config) == "tokens" else 1

    def _named_blocks(self, config: C) -> tuple[str, ...] | None:
        if self.block_names is not None:
            return tuple(self.block_names(config))
        return None if self.n_blocks is None else tuple(f"blocks.{number}" for number in range(self.n_blocks(config)))

    def sequence_problems(self, config: C) -> list[str]:
        """Return what the tensor plan lacks for the sequence parallelism that the spec claims."""
        needed: dict[Style, str] = {
            "scatter_sequence": "the module after which the sequence is split",
            "vocab_loss": "the output layer, before which it is gathered",
        }
        styles = set(self.tensor_plan(config).values()) if self.sequence_parallel else set(needed)
        return [
            f"sequence_parallel is claimed, and the tensor plan has no {style!r}: {what}"
            for style, what in needed.items()
            if style not in styles
        ]

    # --- the model

    def with_few_blocks(self, config: C) -> C:
        """Return a config with two blocks, where others are alike and a model can have so few; else the config."""
        if self.with_blocks is None:
            return config
        fewer = self.with_blocks(config, min(2, len(self.blocks(config))))
        try:
            self.on_meta(fewer)
        except ConfigError:  # a model of transformers that needs a layer of each kind
            return config
        return fewer

    def on_meta(self, config: C, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return the whole model on the meta device, its weights of that dtype, with its `block_names`."""
        model = _on_meta(self, config).to(dtype)
        model.block_names = self.blocks(config)  # type: ignore[assignment]
        return model

    def built(self, config: C, *, seed: int) -> nn.Module:
        """Return the whole model on the CPU, with the values that its own `__init__` draws from the seed."""
        return built(lambda: self.build(config), seed=seed)


def _on_meta(spec: ModelSpec[C], config: C) -> nn.Module:
    with torch.device("meta"), WithoutInit():
        if spec.is_built_in:
            return spec.build(config)
        try:
            model = spec.build(config)
        except Exception as error:  # of the model
            where = line_of(error, spec.build, otherwise=spec.name)
            raise ModelError(f"{where}: {short(error)}, on the meta device: see paralab check-model") from error
    check_module(spec.name, model)
    return model


@lru_cache(maxsize=32)
def _found(spec: ModelSpec[C], config: C) -> Found:
    return look_into(_on_meta(spec, config), spec._named_blocks(config))


@lru_cache(maxsize=32)
def _counted(spec: ModelSpec[C], config: C) -> Flops:
    model = spec.on_meta(config)
    try:
        inputs, targets = spec.example(config, 1)
        return Flops(float(count_flops(model, inputs, targets)), "counted")
    except Exception as error:  # of the model's own code, which may raise any
        said = short(error)
        advice = "see paralab check-model, or give its spec flops=lambda config: Flops(per_sample=..., formula=...)"
        raise ModelError(f"operations of {spec.name} cannot be counted on the meta device ({said}): {advice}") from None
