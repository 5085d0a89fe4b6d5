"""Data: text, images and points as batches, the same for every layout. See `open_dataset` and `batches`."""

from paralab.data.classes import WithoutClass
from paralab.data.dataset import Batch, Compact, Dataset, Samples
from paralab.data.files import path_of
from paralab.data.images import ArrayImages, count_classes, open_images
from paralab.data.order import batches
from paralab.data.points import SHAPES, open_points
from paralab.data.tasks import Classify, ClassifyStored, Denoise
from paralab.data.text import AS_IT_IS, TextOptions, open_text
from paralab.data.tokenizer import encoding, get_tokenizer
from paralab.data.views import Views
from paralab.errors import DataError, ModelError, did_you_mean
from paralab.models.configs import ImageConfig, ModelConfig, NoiseConfig, PointConfig, TextConfig

__all__ = [
    "BUILT_IN",
    "Batch",
    "Compact",
    "Dataset",
    "TextOptions",
    "batches",
    "count_classes",
    "encoding",
    "get_tokenizer",
    "open_dataset",
]

BUILT_IN = {"alice": "text", "mnist": "images", **dict.fromkeys(SHAPES, "points")}
SPLITS = ("train", "validation")
_KIND_OF_TASK = {
    "text": "text",
    "classify": "images",
    "views": "images",
    "denoise_images": "images",
    "denoise_points": "points",
}
_ELSEWHERE = {
    "text": "file:PATH (.txt, .md, .jsonl, .csv, .parquet, ...; or a folder), or a Hugging Face set NAME[:CONFIG]",
    "images": "file:FOLDER (IDX files, or one subfolder a class), or file:FILE.npz",
    "points": "",
}


def open_dataset(
    name: str,
    *,
    config: ModelConfig,
    seq_len: int | None = None,
    split: str = "train",
    text: TextOptions = AS_IT_IS,
    held_out_class: int | None = None,
) -> Dataset:
    """Open the data set `name` in the form that a model config asks for by its `task`.

    split: "train" or "validation". seq_len: tokens a sample, by default what the model holds; text only.
    held_out_class: of labelled images, one that is left out.
    Raises: DataError naming what can be used instead; ModelError where the config lacks what its task needs.
    """
    if config.task not in _KIND_OF_TASK:
        known = ", ".join(_KIND_OF_TASK)
        raise ModelError(f"no data set is for task {config.task!r} of {type(config).__name__}: use one of {known}")
    kind = _KIND_OF_TASK[config.task]
    if split not in SPLITS:
        raise DataError(f"split {split!r} is unknown{did_you_mean(split, SPLITS)}: use one of {', '.join(SPLITS)}")
    _check_name(name, kind=kind)
    if kind == "text":
        if not isinstance(config, TextConfig):
            raise _incomplete(config, TextConfig)
        return open_text(name, config=config, split=split, seq_len=seq_len, options=text)
    if seq_len is not None or text != AS_IT_IS:
        raise DataError(
            f"--text-column, --streaming, --max-tokens or --seq-len with {name}, which is {kind}: leave them out"
        )
    samples = _samples(name, config=config, split=split)
    if held_out_class is not None:
        samples = WithoutClass(samples, held_out_class)
    if config.task == "classify":
        return (ClassifyStored if isinstance(samples, ArrayImages) else Classify)(samples)
    if config.task == "views":
        return Views(samples)
    if not isinstance(config, NoiseConfig):
        raise _incomplete(config, NoiseConfig)
    return Denoise(samples, sigma_min=config.sigma_min, sigma_max=config.sigma_max)


def _samples(name: str, *, config: ModelConfig, split: str) -> Samples:
    if _KIND_OF_TASK[config.task] == "images":
        if not isinstance(config, ImageConfig):
            raise _incomplete(config, ImageConfig)
        return open_images(name, config=config, split=split)
    if not isinstance(config, PointConfig):
        raise _incomplete(config, PointConfig)
    return open_points(name, config=config, split=split)


def _incomplete(config: ModelConfig, form: type) -> ModelError:
    """Say which fields a config lacks of those that its task needs."""
    needed = [
        name for base in reversed(form.__mro__) for name, found in vars(base).items() if isinstance(found, property)
    ]
    lacking = ", ".join(name for name in needed if not hasattr(config, name))
    return ModelError(f"{type(config).__name__} has no {lacking}, which task {config.task!r} needs: add to its fields")


def _check_name(name: str, *, kind: str) -> None:
    """Refuse a name that is certainly wrong before anything is opened or asked over the network."""
    known = [x for x, its_kind in BUILT_IN.items() if its_kind == kind]
    use = "use " + ", ".join(filter(None, [*known, _ELSEWHERE[kind]]))
    if name in BUILT_IN:
        if BUILT_IN[name] != kind:
            raise DataError(f"data {name!r} is {BUILT_IN[name]}, this model consumes {kind}: {use}")
        return
    hint = did_you_mean(name, known)
    is_path = kind != "points" and path_of(name) is not None
    may_be_on_hub = kind == "text" and ("/" in name or not hint)
    if not is_path and not may_be_on_hub:
        raise DataError(f"data {name!r} is unknown{hint}: {use}")
