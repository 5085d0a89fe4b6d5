"""What a model's config says: its task, from which follows the data that it consumes, and what that data asks for."""

from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable


class ModelConfig(Protocol):
    """Sizes of one model: a frozen dataclass with whatever fields the model has. All of them say what it is for.

    task: "text", "classify", "views", "denoise_images" or "denoise_points", from which follows what data the model
    consumes.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __hash__(self) -> int: ...
    @property
    def task(self) -> str: ...


C = TypeVar("C", bound=ModelConfig)
Unit = Literal["tokens", "images", "points"]  # what throughput counts
UNITS: dict[str, Unit] = {
    "text": "tokens",
    "classify": "images",
    "views": "images",
    "denoise_images": "images",
    "denoise_points": "points",
}  # by task


@runtime_checkable
class SequenceConfig(ModelConfig, Protocol):
    """The config of a model of sequences. seq_len: positions of the longest one."""

    @property
    def seq_len(self) -> int: ...


@runtime_checkable
class TextConfig(SequenceConfig, Protocol):
    """What a text asks of a config. tokenizer: name of the encoding, "gpt2" or "bytes", or a `tokenizer.json`."""

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
