"""Tokenizers: each gives any text back, is trained once, and is compared on what it was not trained on."""

import hashlib
import json
import signal
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from paralab.commands import data, data_tokenize
from paralab.curation import compare_tokenizers
from paralab.curation.compare_tokenizers import Corpus, compare, padding
from paralab.curation.train_tokenizer import KINDS, save, train
from paralab.data.assets import read_asset
from paralab.data.tokenizer import get_tokenizer
from paralab.errors import DataError, UsageError

TEXT = read_asset("alice.txt").decode()[:20_000]
ODD = "naïve 🙂 漢字\n\t\x00\x7f" + "".join(map(chr, range(1, 0x250))) + " \n\n x" + "y" * 300


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARALAB_CACHE", str(tmp_path / "cache"))


def tokenize(*words: object) -> int:
    return data.main(["tokenize", *map(str, words)])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_any_text_back(kind: str, tmp_path: Path) -> None:
    tokenizer = get_tokenizer(str(save(train(kind, [TEXT], vocabulary=600), tmp_path)))
    (ids,) = tokenizer.encode([ODD])
    assert tokenizer.decode(ids.tolist()) == ODD
    assert tokenizer.decode([*ids.tolist(), tokenizer.end_of_text, 5]) == ODD
    (ids,) = tokenizer.encode([TEXT])
    assert len(ids) < 0.6 * len(TEXT) and ids.max() < tokenizer.vocab_size


def test_the_comparison_counts_tokens_bytes_and_what_is_used() -> None:
    found = compare("bytes", get_tokenizer("bytes"), ["abé", "a"])
    assert (found.n_tokens, found.n_bytes, found.used, found.vocabulary, found.exact) == (5, 5, 4, 257, True)


def test_one_piece_that_is_not_given_back_is_enough_to_be_inexact(tmp_path: Path) -> None:
    file = save(train("bpe", ["ab ab"], vocabulary=258), tmp_path)
    file.write_text(file.read_text().replace('"Ã":', '"_":'))  # no letter begins with this byte any more
    found = [compare("bpe", get_tokenizer(str(file)), texts) for texts in (["a", "b"], ["é", "b"])]
    assert [one.exact for one in found] == [True, False]


@pytest.mark.parametrize(("vocabulary", "degree", "rows"), [(257, 2, 1), (257, 64, 63), (4096, 64, 0), (50_257, 8, 7)])
def test_rows_that_a_vocabulary_lacks(vocabulary: int, degree: int, rows: int) -> None:
    assert padding(vocabulary, degree) == rows and (vocabulary + rows) % degree == 0


def test_it_is_trained_once_and_again_where_something_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book, out = tmp_path / "book.txt", tmp_path / "out"
    book.write_text(TEXT)

    def trained(vocabulary: int = 300) -> list[str]:
        assert tokenize(book, "--kinds", "bytes,bpe,wordpiece", "--vocabulary", vocabulary, "--out", out) == 0
        said = capsys.readouterr().err
        return [kind for kind in KINDS if "training" in said and kind in said.split("training", 1)[1]]

    assert trained() == ["bpe", "wordpiece"]
    assert trained() == []
    (out / "bpe" / "made.json").unlink()  # as where it was interrupted
    assert trained() == ["bpe"]
    file = out / "wordpiece" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    assert trained() == ["wordpiece"]
    assert trained(310) == ["bpe", "wordpiece"]
    book.write_text(TEXT[1:])
    assert trained(310) == ["bpe", "wordpiece"]
    assert json.loads((out / "bpe" / "made.json").read_text())["text"] == Corpus((str(book),), "text").identity
    both = Corpus((str(book), str(tmp_path / "more.txt")), "text")
    identities = [(tmp_path / "more.txt").write_text(more) and both.identity for more in (TEXT, TEXT[2:])]
    assert len({*identities, Corpus((str(book),), "text").identity}) == 3, "of the content of every file"


def test_a_text_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book, out = tmp_path / "book.txt", tmp_path / "out"
    book.write_text(TEXT)

    def changed(*args: Any, **options: Any) -> Any:
        found = train(*args, **options)
        book.write_text(TEXT[1:])
        return found

    monkeypatch.setattr(compare_tokenizers, "train", changed)
    with pytest.raises(DataError, match=r"book\.txt changed meanwhile: start again when nothing writes to it"):
        tokenize(book, "--kinds", "bpe", "--vocabulary", "300", "--workers", "1", "--out", out)
    assert not (out / "bpe" / "tokenizer.json").exists()


def test_the_table_fits_a_terminal_and_says_which_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenize("alice", "--kinds", "bytes,gpt2,bpe", "--vocabulary", 300, "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 80 and lines[-1] == str(tmp_path / "out" / "bpe" / "tokenizer.json")
    table = {line.split()[0]: line.split()[1:] for line in lines[4:7]}
    assert table["bytes"][:4] == ["11,685", "1.000", "257", "64"] and table["bpe"][2] == "300"
    assert table["gpt2"][4:] == ["1", "3", "7", "15", "47"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vocabulary", "256"], "use 257 or more"),
        (["--kinds", "bep"], "did you mean bpe"),
        (["--kinds", "bpe,bytes,bpe"], "has bpe twice: use --kinds bpe,bytes"),
        (["--out", "/proc/x"], "cannot be written"),
        (["--workers", "x"], "at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        tokenize("alice", *words)


@pytest.mark.parametrize(("content", "said"), [(b"", "no text to train on"), (b"\x00ab", "not text")])
def test_texts_that_are_none_are_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(DataError, match=said):
        tokenize(tmp_path / "t.txt", "--out", tmp_path / "out")


COMPUTED: list[object] = []  # in this process


def compute(training: object) -> None:
    """Take seconds in which Python hears no signal."""
    try:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**7)
    finally:
        COMPUTED.append(training)


def test_the_training_on_a_long_text_ends_at_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "a.txt").write_text(TEXT)
    monkeypatch.setattr(data_tokenize, "_LONG_CHARS", 100)
    monkeypatch.setattr(compare_tokenizers, "do", compute)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            tokenize(tmp_path / "a.txt", "--kinds", "bpe", "--out", tmp_path / "out")
    finally:
        signal.signal(signal.SIGALRM, before)
    for process in active_children():
        process.join(10)
    assert not active_children() and not COMPUTED
