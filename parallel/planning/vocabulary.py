"""The vocabulary that a tokenizer gives a model of texts."""

import re
from dataclasses import fields, replace

from paralab.data import get_tokenizer
from paralab.errors import ConfigError
from paralab.models.configs import C
from paralab.models.spec import ModelSpec


def with_tokenizer(config: C, tokenizer: str | None, spec: ModelSpec[C], size: str) -> C:
    """Give a model of texts the vocabulary of a tokenizer; a size that names a vocabulary (v50304) keeps its own.

    tokenizer: as `--tokenizer` has it; None leaves the model as it is.
    Raises: ConfigError for a model whose vocabulary is given; DataError for a tokenizer that cannot be read.
    """
    if tokenizer is None:
        return config
    if not {"tokenizer", "vocab_size"} <= {field.name for field in fields(config)}:
        raise ConfigError(f"--tokenizer does not apply to {spec.name} {size}: leave it out")
    named = size not in spec.sizes and re.search(r"v\d+", size.lower()) is not None
    vocabulary = {} if named else {"vocab_size": get_tokenizer(tokenizer).vocab_size}
    return replace(config, tokenizer=tokenizer, **vocabulary)
