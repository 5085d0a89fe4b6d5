"""The config of a causal language model of transformers, in the form of all configs here: frozen, and plain values."""

import contextlib
import copy
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from paralab.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class CausalLMConfig:
    """One model of transformers and how it is trained.

    architecture: name of its class. values: its configuration as JSON text, with sorted keys. longest: positions that
    the configuration allows; None where it sets no limit. seq_len: tokens of a sample. tokenizer: name of a built-in
    encoding, or the path of a `tokenizer.json`. dropout: the largest dropout in the configuration, which is not used.
    """

    architecture: str
    values: str
    seq_len: int
    longest: int | None
    tokenizer: str
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.longest is not None and self.seq_len > self.longest:
            raise ConfigError(
                f"--seq-len {self.seq_len}: {self.architecture} has {self.longest} positions by its configuration, "
                "use that or fewer"
            )

    @property
    def task(self) -> Literal["text"]:
        return "text"

    @property
    def vocab_size(self) -> int:
        return int(json.loads(self.values)["vocab_size"])

    @property
    def theirs(self) -> "PreTrainedConfig":
        """The configuration as transformers has it, without dropout. Shared: not to be changed."""
        return _theirs(self.values)


def as_text(values: Mapping[str, Any]) -> str:
    """Return a configuration as JSON text that is the same for the same values."""
    return json.dumps(values, sort_keys=True)


@lru_cache(maxsize=32)
def _theirs(values: str) -> "PreTrainedConfig":
    plain = json.loads(values)
    try:
        return without_dropout(with_dropout(plain))
    except Exception as error:  # of values that were changed here: fewer layers, or a smaller model
        kind, said = plain.get("model_type"), " ".join(str(error).split())[:160]
        raise ConfigError(
            f"transformers makes no {kind} with fewer layers than its configuration has ({said}): give another model, "
            "or its module to paralab.parallelize (docs/library.md)"
        ) from None


def with_values(config: CausalLMConfig) -> "PreTrainedConfig":
    """Return the configuration as it was read, dropout included."""
    return with_dropout(json.loads(config.values))


def with_dropout(values: Mapping[str, Any]) -> "PreTrainedConfig":
    """Return a configuration of transformers from its values, dropout included."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[values["model_type"]]
    with quietly():
        return kind.from_dict(kind._decode_special_floats(dict(values)))  # infinity, for which JSON has no word


def dropouts(theirs: "PreTrainedConfig") -> dict[str, float]:
    """Return the dropout probabilities of a configuration that are above zero, by name."""
    named = {name: p for name, p in theirs.to_dict().items() if _DRAWS.search(name) and not name.startswith(_OF_OTHERS)}
    return {name: float(p) for name, p in named.items() if isinstance(p, int | float) and p > 0 and p is not True}


_DRAWS = re.compile("drop|jitter")  # in the name of what draws random numbers in training
_OF_OTHERS = ("classifier", "summary")  # of models with another output layer


def without_dropout(theirs: "PreTrainedConfig") -> "PreTrainedConfig":
    """Return a configuration with every dropout set to zero: layouts draw other numbers, and could not be compared."""
    for name in dropouts(theirs):
        setattr(theirs, name, 0.0)
    return theirs


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers, and what it imports, from printing warnings and progress bars: what matters is said here."""
    from transformers.utils import logging as theirs

    bars, before = theirs.is_progress_bar_enabled(), logging.root.manager.disable
    logging.disable(logging.WARNING)  # also of DeepSpeed, whose log is on stdout
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(before)
        if bars:
            theirs.enable_progress_bar()


def new_model(config: CausalLMConfig) -> "PreTrainedModel":
    """Return the model of transformers in fp32, with the initial values that it draws from torch's generator."""
    import torch
    from transformers import AutoModelForCausalLM

    with quietly():  # a copy, because the model keeps it and writes into it
        return AutoModelForCausalLM.from_config(copy.deepcopy(config.theirs), dtype=torch.float32)
