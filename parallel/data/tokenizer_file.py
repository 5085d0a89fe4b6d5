"""The encoding of a model of Hugging Face: its `tokenizer.json`, read by the library that wrote it."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from paralab.console.inputs import read_whole
from paralab.data.files import once_a_content
from paralab.errors import DataError

NAME = "tokenizer.json"


class TokenizerFile:
    """The ids of a `tokenizer.json`. No tokens are added to a text but the one that ends a document.

    name: says what its content is, wherever it lies. vocab_size: one more than its largest id.
    """

    dtype = np.uint32  # of the ids on the disk: vocabularies of 150,000 tokens are usual

    def __init__(self, path: Path) -> None:
        try:
            content = read_whole(path)
            self._ids = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises what is no class of its own
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"{path} cannot be read ({why}): give --tokenizer a tokenizer.json") from None
        self.name = f"{NAME} {hashlib.sha256(content).hexdigest()[:16]}"
        self.vocab_size = 1 + max(self._ids.get_vocab(with_added_tokens=True).values(), default=0)
        self.end_of_text = self._end_of_text(path)

    def _end_of_text(self, path: Path) -> int:
        """Return the id of the token that `tokenizer_config.json` beside it, or the model, says ends a text."""
        token = _json(path.with_name("tokenizer_config.json")).get("eos_token")
        found: Any = self._ids.token_to_id(str(token["content"] if isinstance(token, dict) else token))
        if found is None:
            said = _json(path.with_name("config.json")).get("eos_token_id")
            found = said[0] if isinstance(said, list) and said else said
        if not isinstance(found, int):
            raise DataError(
                f"{path} does not say which token ends a text: add its eos_token to tokenizer_config.json beside it, "
                "or take both files away to read texts as bytes"
            )
        return found

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids (n_tokens,) uint32 of each text."""
        encoded = self._ids.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=self.dtype) for one in encoded]

    def n_bytes(self, ids: np.ndarray) -> int:
        """Return how many bytes of UTF-8 the ids of a text stand for."""
        return len(self._ids.decode(ids.tolist(), skip_special_tokens=False).encode())

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids up to the first end of text."""
        ids = list(ids)
        return self._ids.decode(ids[: ids.index(self.end_of_text)] if self.end_of_text in ids else ids)


@once_a_content
def open_file(path: Path) -> TokenizerFile:
    """Return the tokenizer of a file. Raises: DataError when it cannot be used."""
    return TokenizerFile(path)


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
