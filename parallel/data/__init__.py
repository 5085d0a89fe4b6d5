"""Data: text, images and points as batches, the same for every layout. See `open_dataset` and `batches`."""

from typing import Any

from parallel.data.dataset import Batch, Compact, Dataset
from parallel.data.files import path_of
from parallel.data.images import ArrayImages, count_classes, open_images
from parallel.data.order import batches
from parallel.data.points import SHAPES, open_points
from parallel.data.tasks import Classify, ClassifyStored, Denoise
from parallel.data.text import AS_IT_IS, TextOptions, open_text
from parallel.data.tokenizer import encoding, get_tokenizer
from parallel.errors import DataError, did_you_mean

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
_KIND_OF_TASK = {"text": "text", "classify": "images", "denoise_images": "images", "denoise_points": "points"}
_ELSEWHERE = {
    "text": "file:PATH (.txt, .md, .jsonl, .csv, .parquet, ...; or a folder), or a Hugging Face set NAME[:CONFIG]",
    "images": "file:FOLDER (IDX files, or one subfolder a class), or file:FILE.npz",
    "points": "",
}


def open_dataset(
    name: str,
    *,
    config: Any,
    seq_len: int | None = None,
    split: str = "train",
    text: TextOptions = AS_IT_IS,
) -> Dataset:
    """Open the data set `name` in the form that a model config asks for by its `task`.

    split: "train" or "validation". seq_len: tokens a sample, by default what the model holds; text only.
    Raises: DataError naming what can be used instead.
    """
    kind = _KIND_OF_TASK[config.task]
    if split not in SPLITS:
        raise DataError(f"split {split!r} is unknown{did_you_mean(split, SPLITS)}: use one of {', '.join(SPLITS)}")
    _check_name(name, kind=kind)
    if kind == "text":
        return open_text(name, config=config, split=split, seq_len=seq_len, options=text)
    if seq_len is not None or text != AS_IT_IS:
        raise DataError(
            f"--text-column, --streaming, --max-tokens or --seq-len with {name}, which is {kind}: leave them out"
        )
    samples = (open_images if kind == "images" else open_points)(name, config=config, split=split)
    if config.task == "classify":
        return (ClassifyStored if isinstance(samples, ArrayImages) else Classify)(samples)
    return Denoise(samples, sigma_min=config.sigma_min, sigma_max=config.sigma_max)


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
