"""Text as windows of tokens."""

from dataclasses import dataclass

import numpy as np
import torch

from paralab.data import sources
from paralab.data.dataset import USED_FOR, Batch
from paralab.data.files import path_of
from paralab.data.token_cache import TokenFile, cached_tokens
from paralab.data.tokenizer import Tokenizer, get_tokenizer
from paralab.errors import DataError
from paralab.models.configs import TextConfig


@dataclass(frozen=True)
class TextOptions:
    """How a text set is read.

    column: which one holds the text, where there are columns.
    streaming: read a Hugging Face set without storing it (its tokens are stored).
    max_tokens: read so many tokens of each split at most; None reads all.
    """

    column: str = sources.TEXT_COLUMN
    streaming: bool = False
    max_tokens: int | None = None


AS_IT_IS = TextOptions()


class TokenWindows:
    """Windows of seq_len tokens with their successors as targets, both (rows, seq_len) int64.

    Windows do not overlap; every token but the first is a target once, up to a tail shorter than a window.
    bytes_per_token: UTF-8 bytes of the split over its tokens. Divide a loss in bits a token by it to get bits a
    byte, which compares between tokenizers.
    """

    def __init__(
        self, source: sources.Source, *, split: str, file: TokenFile, tokenizer: Tokenizer, seq_len: int
    ) -> None:
        self.name, self.file, self.tokenizer, self.seq_len = source.name, file, tokenizer.name, seq_len
        self.sha256 = source.sha256 or file.counts.sha256
        self.n_tokens, self.n_bytes = file.counts.n_tokens, file.counts.n_bytes
        self.n_samples = (self.n_tokens - 1) // seq_len
        text = f"{self.n_tokens:,} tokens for {USED_FOR[split]}" + (f" ({source.how})" if source.how else "")
        self.found = f"{source.name}, {text}" if split == "train" else text

    @property
    def bytes_per_token(self) -> float:
        return self.n_bytes / self.n_tokens

    def collate(self, indices: np.ndarray, *, positions: np.ndarray, seed: int) -> Batch:
        return self.cast(self.stored(indices))

    def stored(self, indices: np.ndarray) -> Batch:
        offsets = indices[:, None] * self.seq_len + np.arange(self.seq_len)
        tokens = self.file.tokens()
        inputs, targets = (torch.from_numpy(tokens[x]) for x in (offsets, offsets + 1))
        return Batch((inputs,), targets)

    def cast(self, batch: Batch) -> Batch:
        return Batch((batch.inputs[0].long(),), batch.targets.long())


def open_text(
    name: str, *, config: TextConfig, split: str, seq_len: int | None = None, options: TextOptions = AS_IT_IS
) -> TokenWindows:
    """Open a text: `alice`, `file:PATH` of a file or folder, or a Hugging Face set `NAME[:CONFIG]`.

    config: a model config with `tokenizer`, `vocab_size` and `seq_len` (the longest window it can take).
    Raises: DataError when the text cannot be read, is too short, or does not fit the vocabulary.
    """
    tokenizer = get_tokenizer(config.tokenizer)
    seq_len = config.seq_len if seq_len is None else seq_len
    if config.vocab_size < tokenizer.vocab_size:
        raise DataError(
            f"vocab_size={config.vocab_size} does not hold the {tokenizer.vocab_size} tokens of tokenizer "
            f"{config.tokenizer}: use a larger vocab_size, or tokenizer bytes (257)"
        )
    if not 1 <= seq_len <= config.seq_len:
        raise DataError(f"seq_len={seq_len} does not fit the model: use --seq-len from 1 to {config.seq_len}")
    source = open_source(name, split=split, options=options)
    file = cached_tokens(source, tokenizer=tokenizer, max_tokens=options.max_tokens)
    if file.counts.n_tokens <= seq_len:
        raise DataError(_too_short(source, split, n_tokens=file.counts.n_tokens, seq_len=seq_len, options=options))
    return TokenWindows(source, split=split, file=file, tokenizer=tokenizer, seq_len=seq_len)


def _too_short(source: sources.Source, split: str, *, n_tokens: int, seq_len: int, options: TextOptions) -> str:
    how = f" ({source.how})" if source.how else ""
    if options.max_tokens is not None and options.max_tokens <= seq_len:
        advice = f"use --max-tokens {seq_len + 1} or more"
    else:
        advice = "use a longer text" + (f" or --seq-len {n_tokens - 1}" if n_tokens > 1 else "")
    return f"the {split} split of {source.name}{how} has {n_tokens} tokens, one window needs {seq_len + 1}: {advice}"


def open_source(name: str, *, split: str, options: TextOptions = AS_IT_IS) -> sources.Source:
    """Find one split of a text by the name that `--data` has of it. Raises: DataError where there is none."""
    path = None if name == "alice" else path_of(name)
    if name != "alice" and (path is None or (path.is_dir() and sources.is_hugging_face(path))):
        return sources.hugging_face(str(path or name), split=split, column=options.column, streaming=options.streaming)
    if options.streaming:
        raise DataError(f"--streaming with {name}: only Hugging Face sets are streamed, leave it out")
    if path is None:
        sources.check_no_column(options.column, name=name)
        return sources.alice(split)
    return sources.local(path, split=split, column=options.column)
