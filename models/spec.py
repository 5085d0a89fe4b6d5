"""What a model file tells the rest of the project, and the registry of models.

A model is one file with a frozen config, a plain `nn.Module` and a `ModelSpec`. It never imports
torch.distributed. The module follows four rules, and every strategy works from these alone:

1. `forward(*inputs, targets=None)` returns the mean loss over the samples it was given (fp32, shape ()) when
   `targets` is there, and the prediction when it is not.
2. The repeated part is `self.blocks`, a ModuleDict with keys "0", "1", ...; what runs before it is named in
   `spec.first`, what runs after it (loss included) in `spec.last`. A pipeline stage is a copy in which the
   other blocks are deleted and the other named modules are None: `forward` skips what is None, takes what
   the previous stage returned (a tensor or a tuple of floating-point tensors) and returns what the next takes.
   A model that is built otherwise names its blocks in `spec.block_names`, and says in `spec.cut` what a stage is.
3. Modules are created on the meta device, without values (`spec.on_meta`): `spec.init` gives every parameter and
   persistent buffer its value from a generator seeded by its full name.
4. A module whose result depends on ranks it cannot see holds `all_reduce` (see `Reducing`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# How the ranks of a tensor axis share a module. The sequence is split between the last two under /sp alone.
#   column            Linear or Conv2d: each rank has a part of its outputs; its input is whole. Always before a row
#   row               Linear or Conv2d: each rank has a part of its inputs, which a column made; its outputs are summed
#   channels          norm between a column and a row convolution: each rank has the channels that it was given
#   vocab_embedding   Embedding: each rank has a part of the vocabulary; its outputs are summed
#   vocab_loss        output layer and loss: each rank has a part of the vocabulary; the module reduces the softmax
#   sequence          whole on every rank (a norm); under /sp it sees a piece of the sequence, gradients are summed
#   scatter_sequence  whole on every rank; under /sp each keeps a piece of the sequence of its output
Style = Literal["column", "row", "vocab_embedding", "vocab_loss", "channels", "sequence", "scatter_sequence"]


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


class ModelConfig(Protocol):
    """Sizes of one model: a frozen dataclass with whatever fields the model has. All of them say what it is for.

    task: "text", "classify", "denoise_images" or "denoise_points", from which follows what data the model consumes.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def task(self) -> str: ...


C = TypeVar("C", bound=ModelConfig)


@runtime_checkable
class SequenceConfig(ModelConfig, Protocol):
    """The config of a model of sequences. seq_len: positions of the longest one."""

    @property
    def seq_len(self) -> int: ...


@runtime_checkable
class TextConfig(SequenceConfig, Protocol):
    """What a text asks of a config. tokenizer: name of the encoding, "gpt2" or "bytes"."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def tokenizer(self) -> str: ...


@runtime_checkable
class ImageConfig(ModelConfig, Protocol):
    """What images ask of a config. image_size: pixels of height and of width. n_classes: labels are below it."""

    @property
    def image_size(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def n_classes(self) -> int: ...


@runtime_checkable
class PointConfig(ModelConfig, Protocol):
    """What points ask of a config. dims: coordinates of one."""

    @property
    def dims(self) -> int: ...


@runtime_checkable
class NoiseConfig(ModelConfig, Protocol):
    """What denoising asks of a config: the smallest and largest standard deviation of the noise."""

    @property
    def sigma_min(self) -> float: ...
    @property
    def sigma_max(self) -> float: ...


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


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Generic[C]):
    """Declare a model to strategies, benchmarks and tests. Callables take the config of one size."""

    name: str
    sizes: Mapping[str, C]  # preset name -> frozen config dataclass
    custom_size: Callable[[str], C | None] = lambda text: (
        None
    )  # config of a size that is no preset; None for another form
    custom_form: str = ""  # what such a size looks like, for messages
    default_size: str  # trains on a laptop
    tiny_size: str  # a second or less a step: what tests use
    build: Callable[[C], nn.Module]
    init: Callable[[C, str, Tensor, torch.Generator], None]  # config, full name, full CPU tensor to initialise
    example: Callable[[C, int], tuple[tuple[Tensor, ...], Tensor]]  # batch size -> inputs, targets: shapes, dtypes
    n_blocks: Callable[[C], int] = lambda config: 0  # modules named blocks.0, blocks.1, ...
    block_names: Callable[[C], tuple[str, ...]] | None = None  # full names of blocks that are called otherwise
    cut: Callable[[C, nn.Module, Cut], nn.Module] | None = None  # whole model -> stage, where rule 2 does not hold
    with_blocks: Callable[[C, int], C] | None = None  # the same config with so many blocks, or the fewest above
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    flops: Callable[[C], Flops]
    data: Callable[[C], str]  # data set used without --data
    unit: Callable[[C], Literal["tokens", "images", "points"]]  # what throughput counts
    units_per_sample: Callable[[C], int] = lambda config: 1
    tensor_plan: Callable[[C], Mapping[str, Style]] = lambda config: {}  # fnmatch pattern of module -> style
    tensor_divides: Callable[[C], Mapping[str, int]] = lambda config: {}  # what tp must divide, by name
    sequence_parallel: bool = False
    smooth: bool = True  # False: has kinks (ReLU, max), where the last bit of an input can flip a gradient
    batch_statistics: Callable[[C], Literal["none", "rank", "global"]] = lambda config: "none"
    tied: Mapping[str, str] = field(default_factory=dict)  # parameter -> the parameter whose storage it shares
    refuses: Mapping[str, str] = field(default_factory=dict)  # strategy -> why it cannot be in a layout of this model

    def config(self, size: str | None = None) -> C:
        """Return the config of a preset or of a custom size.

        Raises: KeyError when it is neither; ValueError when the numbers of a custom one do not fit together.
        """
        name = (size or self.default_size).lower()
        custom = self.custom_size(name) if name not in self.sizes else None
        return custom if custom is not None else self.sizes[name]

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

    def blocks(self, config: C) -> tuple[str, ...]:
        """Return the full names of the blocks, in the order in which they run."""
        if self.block_names is not None:
            return self.block_names(config)
        return tuple(f"blocks.{number}" for number in range(self.n_blocks(config)))

    def on_meta(self, config: C, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return the whole model on the meta device, its weights of that dtype, with its `block_names`."""
        with torch.device("meta"), _WithoutInit():
            model = self.build(config).to(dtype)
        model.block_names = self.blocks(config)  # type: ignore[assignment]
        return model


class _WithoutInit(TorchFunctionMode):
    """Leaves out the random numbers of `torch.nn.init`: on the meta device they bring the compiler along."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawn = getattr(func, "__module__", None) == "torch.nn.init"
        return kwargs["tensor"] if drawn else func(*args, **kwargs)
