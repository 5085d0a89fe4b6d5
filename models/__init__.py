"""Models, each one file that knows architecture only."""

import hashlib
import os
from collections.abc import Iterator, MutableMapping
from functools import lru_cache
from importlib import import_module
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

from paralab.errors import ConfigError, did_you_mean
from paralab.models import files

if TYPE_CHECKING:
    from paralab.models.hugging_face import CausalLMConfig
    from paralab.models.spec import ModelSpec

Norm = Literal["batch", "syncbatch", "group", "none"]  # the normalisation layers of an image model
Residual = Literal["on", "off"]  # whether the input of a block is added to its output
NAMES = (
    "gpt2",
    "llama",
    "mixtral",
    "resnet",
    "vicreg",
    "diffusion",
    "logistic",
)  # the only list of models: modules of this package, each with a SPEC

HUGGING_FACE = "hf:"  # before the name or the folder of a causal language model of transformers
FORMS = f"{HUGGING_FACE}NAME_OR_FOLDER, or {files.FORM}"  # of a model that is none of these


class _Specs(MutableMapping[str, "ModelSpec"]):
    """The specs by name, those of files by `FILE.py:NAME`, and those of transformers by `hf:NAME_OR_FOLDER`.

    What a spec needs is imported when it is requested. The keys are the built-in models and those of `register_model`;
    the others can be asked for and are not listed.
    """

    def __init__(self) -> None:
        self._held: dict[str, ModelSpec | None] = dict.fromkeys(NAMES)

    def __getitem__(self, name: str) -> "ModelSpec":
        """Return the spec of that name. Raises: ConfigError for a name, a file or a folder that has none."""
        if name.startswith(HUGGING_FACE):
            return _of_transformers(name)
        if name not in self._held:
            return _loaded(name).spec
        found = self._held[name]
        if found is None:
            found = self._held[name] = import_module(f"paralab.models.{name}").SPEC
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __setitem__(self, name: str, spec: "ModelSpec") -> None:
        self._held[name] = spec

    def __delitem__(self, name: str) -> None:
        del self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


SPECS = _Specs()


def register_model(spec: "ModelSpec") -> None:
    """Make a model known by its name: to `--model`, and to whatever lists models, in this process.

    Raises: ConfigError where the name is taken, or has a form that a file would have.
    """
    if spec.name in SPECS:
        raise ConfigError(f"a model {spec.name} is known already: give its spec another name than {', '.join(SPECS)}")
    if not spec.name or files.parse(spec.name) or ":" in spec.name or "," in spec.name:
        raise ConfigError(f"a model cannot be named {spec.name!r}: use a word such as my-model")
    SPECS[spec.name] = spec


def known(text: str) -> str | None:
    """Return what a model is called from any working directory; None for what is no model.

    That is its name, `/PATH/FILE.py:NAME`, `hf:/PATH` of a folder or file, or `hf:NAME` of the hub.
    """
    where = text.removeprefix(HUGGING_FACE)
    if where and where != text:
        path = os.path.abspath(os.path.expanduser(where))
        return f"{HUGGING_FACE}{path if os.path.exists(path) else where}"
    file = files.parse(text)
    return text if text in SPECS else str(file) if file is not None else None


def label_of(model: str) -> str:
    """Return what to call a model where the folder that it lies in does not matter."""
    if model.startswith(HUGGING_FACE):
        return f"{HUGGING_FACE}{PurePath(model.removeprefix(HUGGING_FACE)).name}"
    file = None if model in SPECS else files.parse(model)
    return file.label if file is not None else model


def folder_of(model: str) -> str:
    """Return what to call the folder of its runs."""
    if model.startswith(HUGGING_FACE):
        return label_of(model).removeprefix(HUGGING_FACE)
    file = None if model in SPECS else files.parse(model)
    if file is None:
        return model
    return PurePath(file.path).stem + ("" if file.name == files.SPEC else f"-{file.name}")


def file_columns(model: str) -> dict[str, str | None]:
    """Return what a row says of the file of a model: None for one that is in no file of its own.

    Of a model of transformers it is the configuration, as the model has it.
    """
    if model.startswith(HUGGING_FACE):
        values = _of_transformers(model).config().values
        return {"model_file": label_of(model), "model_sha256": hashlib.sha256(values.encode()).hexdigest()}
    sha256 = None if model in SPECS or files.parse(model) is None else _loaded(model).sha256
    return {"model_file": label_of(model) if sha256 else None, "model_sha256": sha256}


@lru_cache(maxsize=8)
def _of_transformers(name: str) -> "ModelSpec[CausalLMConfig]":
    return import_module("paralab.models.hugging_face").spec_of(name.removeprefix(HUGGING_FACE))


def _loaded(name: str) -> files.Loaded:
    file = files.parse(name)
    if file is None:
        raise ConfigError(f"model {name} is unknown{did_you_mean(name, SPECS)}: use one of {', '.join(SPECS)}, {FORMS}")
    return files.load(file)
