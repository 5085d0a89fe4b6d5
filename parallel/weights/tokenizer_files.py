"""The tokenizer of a language model as the files that `AutoTokenizer.from_pretrained` reads."""

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.data.tokenizer import BUILT_IN, END_OF_TEXT, encoding, get_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def save(name: str, folder: Path, *, longest: int) -> None:
    """Write tokenizer.json and tokenizer_config.json of the encoding "gpt2" or "bytes", or of one in a file.

    longest: tokens of a window. Raises: DataError when the file cannot be read.
    """
    from transformers import PreTrainedTokenizerFast

    encoder = _encoder(name)
    end = encoder.id_to_token(get_tokenizer(name).end_of_text)
    PreTrainedTokenizerFast(
        tokenizer_object=encoder,
        bos_token=end,
        eos_token=end,
        unk_token=end,
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def differs_from(name: str, folder: Path) -> str:
    """Return the file of a folder that holds another encoding than "gpt2" or "bytes"; empty where there is none.

    Tokens after those of the encoding are special ones or fill the vocabulary up. Raises: OSError, ValueError.
    """
    for file, places in (("tokenizer.json", ("model", "vocab")), ("vocab.json", ())):
        if (folder / file).is_file():
            theirs = json.loads((folder / file).read_text(encoding="utf-8-sig"))
            for place in places:
                theirs = theirs.get(place) if isinstance(theirs, dict) else None
            ours = _texts(_ranks(name))
            same = isinstance(theirs, dict) and ours == {
                text: number for text, number in theirs.items() if isinstance(number, int) and number < len(ours)
            }
            return "" if same else file
    return ""


def _encoder(name: str) -> "Tokenizer":
    """Return an encoding as the library of tokenizers has it."""
    from tokenizers import Tokenizer

    if name in BUILT_IN:
        return _byte_pairs(_ranks(name), split=name != "bytes")
    return Tokenizer.from_file(name)


def _ranks(name: str) -> dict[bytes, int]:
    return {bytes([byte]): byte for byte in range(256)} if name == "bytes" else encoding()._mergeable_ranks


def _texts(ranks: dict[bytes, int]) -> dict[str, int]:
    """Return tokens as files write them: a letter for each byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    return {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}


def _byte_pairs(ranks: dict[bytes, int], *, split: bool) -> "Tokenizer":
    """Return byte pairs as the library of that name has them; split: into GPT-2's words first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = _texts(ranks)
    text = dict(zip(ranks, vocabulary, strict=True))
    merges = [(text[left], text[right]) for left, right in _merges(ranks)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])  # its id follows the others, as in both encodings
    return tokenizer


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return the pair that each token of several bytes is made of: the two parts left by all merges of lower rank."""
    found = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            at = min(range(len(pairs)), key=pairs.__getitem__)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            found.append((parts[0], parts[1]))
    return found
