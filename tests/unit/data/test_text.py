"""Text: the built-in tokenizer without a network, windows, caches, local files and Hugging Face sets."""

import bz2
import codecs
import csv
import gzip
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paralab.data import (
    TextOptions,
    assets,
    encoding,
    files,
    get_tokenizer,
    open_dataset,
    sources,
    splitting,
    token_cache,
)
from paralab.data.text import TokenWindows
from paralab.errors import DataError
from paralab.models.gpt2 import GPT2Config

CONFIG = GPT2Config(n_layers=1, hidden=8, n_heads=1, seq_len=16, vocab_size=257, tokenizer="bytes")
GPT2_CONFIG = replace(CONFIG, tokenizer="gpt2", vocab_size=50_257, seq_len=64)
HELD_OUT = 20


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARALAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def content(dataset: TokenWindows, *, end: int = 256) -> list[int]:
    """Return all token ids of a split, from the token file. end: stands for the end of a text."""
    return [end if token == 256 else token for token in dataset.file.tokens().tolist()]


def open_windows(data: str, **options: Any) -> TokenWindows:
    dataset = open_dataset(data, **options)
    assert isinstance(dataset, TokenWindows)
    return dataset


def opened(path: Path, split: str = "train", **options: Any) -> TokenWindows:
    return open_windows(f"file:{path}", config=CONFIG, split=split, text=TextOptions(**options))


def documents(n: int) -> list[str]:
    return [f"document {i} \u2602" for i in range(n)]


def expected_tokens(texts: list[str]) -> list[int]:
    return [token for text in texts for token in (*text.encode(), 256)]


def test_gpt2_encoding_needs_no_network(offline: None) -> None:
    encoding.cache_clear()
    gpt2 = encoding()
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.n_vocab == 50_257 and gpt2.eot_token == 50_256
    assert open_windows("alice", config=GPT2_CONFIG).n_samples > 0


@given(text=st.text())
@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_tokens_decode_to_the_text(name: str, text: str) -> None:
    tokenizer = get_tokenizer(name)
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode([*ids, tokenizer.end_of_text, 65]) == text


def test_special_tokens_in_text_stay_text() -> None:
    assert 50_256 not in get_tokenizer("gpt2").encode(["a<|endoftext|>b"])[0]


def test_alice_holds_out_the_last_chapter() -> None:
    train, validation = (open_windows("alice", config=CONFIG, split=s) for s in ("train", "validation"))
    book = assets.read_asset("alice.txt")
    assert bytes(content(train) + content(validation)) == book
    assert bytes(content(validation)).startswith(b"CHAPTER XII.")
    assert train.n_bytes + validation.n_bytes == len(book)
    assert train.bytes_per_token == validation.bytes_per_token == 1.0
    assert train.sha256 == assets.SHA256["alice.txt"]


def test_windows_hold_every_token_once_with_its_successor() -> None:
    dataset = open_windows("alice", config=GPT2_CONFIG, seq_len=50, split="validation")
    rows = np.arange(dataset.n_samples)
    batch = dataset.collate(rows, positions=rows, seed=0)
    tokens = encoding().encode_ordinary(assets.read_asset("alice.txt").decode().partition("CHAPTER XII.")[2])
    tokens = encoding().encode_ordinary("CHAPTER XII.") + tokens
    n = dataset.n_samples * 50
    assert batch.inputs[0].shape == batch.targets.shape == (dataset.n_samples, 50)
    assert batch.inputs[0].flatten().tolist() == tokens[:n]
    assert batch.targets.flatten().tolist() == tokens[1 : n + 1]
    assert dataset.n_tokens == len(tokens) and 0 <= len(tokens) - 1 - n < 50
    assert dataset.bytes_per_token == pytest.approx(dataset.n_bytes / len(tokens))


WORDS = "one two", "", " ", "\t x", "it's", "don't!'", "\r", "\u3000全角。", "été ", "42!a_b", "\x1c!\x1c", "\x85~"
PARAGRAPHS = st.lists(st.sampled_from(WORDS))


@given(lines=PARAGRAPHS, end=st.sampled_from(["\n", "", " "]), longest=st.sampled_from([5, 1 << 20]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("size", [1, 5])
def test_text_read_in_pieces_has_the_tokens_of_the_whole(
    lines: list[str], end: str, longest: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitting, "_PIECE_CHARS", size)
    monkeypatch.setattr(splitting, "_LONGEST_PIECE_CHARS", longest)
    path = tmp_path / "book.txt"
    text = end.join(lines).replace("\r", "\n")
    path.write_bytes(text.encode())
    texts = []
    for split in ("train", "validation"):
        pieces = [x for x, ends in sources.local(path, split=split, column="text").pieces() if not ends]
        texts.append("".join(pieces))
        in_pieces = [token for ids in get_tokenizer("gpt2").encode(pieces) for token in ids]
        assert in_pieces == encoding().encode_ordinary(texts[-1]) or longest == 5
    assert "".join(texts) == text


@pytest.mark.parametrize(
    "unit", ["a line that ends in a blank \n", "words on a line ", "中文没有空格，也没有换行。", "{a:[1,2]}", "letters"]
)
def test_every_text_is_read_in_pieces_and_parted(unit: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(unit * (3_000_000 // len(unit)))
    n_chars = len(path.read_text())
    pieces = [x for x, _ in sources.local(path, split="train", column="text").pieces()]
    assert 3 <= len(pieces) and max(map(len, pieces)) <= 1 << 21
    held_out = "".join(x for x, _ in sources.local(path, split="validation", column="text").pieces())
    assert 0.09 < len(held_out) / n_chars <= 0.1
    assert "".join(pieces) + held_out == path.read_text()
    assert open_windows(str(path), config=CONFIG, text=TextOptions(max_tokens=1000)).n_tokens == 1000


def test_pieces_depend_on_the_text_alone_and_are_short() -> None:
    text = "letters" * 200_000 + " and words" * 100_000
    pieces = list(splitting.cut([text]))
    assert pieces == list(splitting.cut(text[i : i + 999] for i in range(0, len(text), 999)))
    assert max(map(len, pieces)) < 1 << 21 and "".join(pieces) == text


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    lines = [f"line {i} \u2014 caf\u00e9\n" for i in range(500)]
    path.write_text("".join(lines))
    train, validation = (open_windows(f"file:{path}", config=CONFIG, split=s) for s in ("train", "validation"))
    assert bytes(content(train) + content(validation)).decode() == "".join(lines)
    assert 0.09 < validation.n_bytes / train.n_bytes < 0.12
    assert open_windows(str(path), config=CONFIG).sha256 == train.sha256


BOOK = "".join(f"line {i} \u2014 caf\u00e9 \n" for i in range(300)) + "\nand \u6587\u5b57.\n"
TWINS = {
    "crlf.txt": BOOK.replace("\n", "\r\n").encode(),
    "cr.txt": BOOK.replace("\n", "\r").encode(),
    "mixed.TXT": BOOK.replace("\n", "\r\n", 40).encode(),
    "bom.text": codecs.BOM_UTF8 + BOOK.encode(),
    "little.md": codecs.BOM_UTF16_LE + BOOK.encode("utf-16-le"),
    "big.txt": codecs.BOM_UTF16_BE + BOOK.replace("\n", "\r\n").encode("utf-16-be"),
    "wide.txt": BOOK.encode("utf-32"),
    "packed.txt.gz": gzip.compress(BOOK.encode()),
    "PACKED.MD.GZ": gzip.compress(codecs.BOM_UTF8 + BOOK.replace("\n", "\r\n").encode()),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_from_another_system_is_the_same_text(name: str, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text(BOOK)
    (tmp_path / name).write_bytes(TWINS[name])
    for split in ("train", "validation"):
        for options in (TextOptions(), TextOptions(max_tokens=100)):
            ours, theirs = (opened(tmp_path / x, split, **vars(options)) for x in ("plain.txt", name))
            assert content(ours) == content(theirs)
            assert ours.sha256 == theirs.sha256


def test_identity_is_that_of_all_content_whatever_the_path(tmp_path: Path) -> None:
    book, other = tmp_path / "book.txt", tmp_path / "deep" / "other.md"
    other.parent.mkdir()
    book.write_text(BOOK)
    other.write_text(BOOK)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.txt").write_text(BOOK)
    before = open_windows(str(book), config=CONFIG)
    folder = open_windows(str(tmp_path / "set"), config=CONFIG)
    assert open_windows(str(other), config=CONFIG).sha256 == before.sha256 != folder.sha256
    for file in (book, tmp_path / "set" / "1.txt"):
        file.write_text(BOOK[:-3] + "x" + BOOK[-2:])  # as long, and changed where it is held out
    assert open_windows(str(book), config=CONFIG).sha256 != before.sha256
    assert open_windows(str(tmp_path / "set"), config=CONFIG).sha256 != folder.sha256
    (tmp_path / "set").rename(tmp_path / "renamed")
    (tmp_path / "renamed" / "1.txt").rename(tmp_path / "renamed" / "2.txt")
    (tmp_path / "renamed" / "2.txt").write_text(BOOK)
    assert open_windows(str(tmp_path / "renamed"), config=CONFIG).sha256 == folder.sha256


def test_what_was_read_of_a_file_is_kept_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = files.once_a_content(lambda path: reads.append(path.read_text()) or reads[-1])
    file = tmp_path / "a.txt"
    file.write_text("old")
    assert [read(file), read(file)] == ["old", "old"] and len(reads) == 2, "a change in the same tick would not show"
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 3_000_000_000)  # as if three seconds had passed
    assert [read(file), read(file)] == ["old", "old"] and len(reads) == 3
    file.write_text("new")
    assert read(file) == "new"


def write_table(path: Path, texts: list[str | None]) -> None:
    kind, rows = files.ending(path), [{"id": i, "body": text} for i, text in enumerate(texts)]
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        if kind == ".json":
            json.dump(rows, file, indent=1)
        elif kind in (".csv", ".tsv"):
            if path.name == "named.csv":
                file.write("sep=;\r\n")
            writer = csv.writer(file, delimiter={"list.tsv": "\t", "comma.CSV.gz": ","}.get(path.name, ";"))
            writer.writerows([("id", "body"), *enumerate(texts)])
        else:
            file.write("\n".join(json.dumps(row) for row in rows))


TABLES = (
    *("list.jsonl", "list.ndjson.gz", "list.json", "x.JSONL"),
    *("list.csv", "comma.CSV.gz", "named.csv", "list.tsv", "list.parquet"),
)


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str, tmp_path: Path) -> None:
    texts = [*(f'"{i}", he; said \u2602\nin two\tlines, ' for i in range(40)), "x" * 200_000]
    path = tmp_path / name
    write_table(path, texts)
    train, validation = (opened(path, split, column="body") for split in ("train", "validation"))
    assert content(validation) == expected_tokens([texts[19], texts[39]])
    assert content(train) == expected_tokens([*texts[:19], *texts[20:39], texts[40]])
    assert train.found == f"{path}, {train.n_tokens:,} tokens for training"
    with pytest.raises(DataError, match=r"no column 'text': use --text-column with one of id, body"):
        opened(path)


def test_json_lines_under_the_name_of_a_list(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text("\n\n".join(json.dumps({"text": text}) for text in documents(40)))
    assert content(open_windows(str(path), config=CONFIG, split="validation")) == expected_tokens(documents(40)[19::20])


def test_of_few_documents_the_last_tenth_of_each_is_held_out(tmp_path: Path) -> None:
    texts = ["one two three four \n" * 40, "five six seven eight" * 30, "nine"]
    write_table(tmp_path / "few.jsonl", texts)
    train, validation = (
        bytes(content(opened(tmp_path / "few.jsonl", split, column="body"), end=0)).decode().split("\0")
        for split in ("train", "validation")
    )
    assert [a + b for a, b in zip(train, validation, strict=True)] == [*texts, ""]
    assert [len(x) for x in validation] == [len("one two three four \n") * 3, len(" six seven eight") + 40, 0, 0]


def folder_of(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ".txt").write_text(text)
    return root


def test_a_folder_keeps_lines_and_ends_each_file_once(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "books", b=BOOK, a__c="second\n" * 100)
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.txt").write_text("not this")
    (root / "cover.png").write_bytes(b"\x89PNG")
    train, validation = (open_windows(f"file:{root}", config=CONFIG, split=s) for s in ("train", "validation"))
    first, second, rest = bytes(content(train, end=0)).split(b"\0")
    assert (second.decode(), rest) == (BOOK[: len(second.decode())], b"")
    assert first == b"second\n" * 91  # the line that reaches beyond nine tenths still belongs to training
    assert content(validation).count(256) == 2
    assert train.found == f"{root}, {train.n_tokens:,} tokens for training (2 files from c.txt to b.txt)"
    many = folder_of(tmp_path / "many", **{f"{i:02}": f"file {i:02}\n" * 9 for i in range(40)})
    held_out = open_windows(str(many), config=CONFIG, split="validation")
    assert content(held_out) == expected_tokens(["file 19\n" * 9, "file 39\n" * 9])
    assert "every 20th document" in held_out.found


@pytest.mark.parametrize(
    ("names", "train", "validation", "unused"),
    [
        (["train", "valid", "test"], ["train"], ["valid"], ["test"]),
        (["TRAIN__a", "Val__a", "notes"], ["TRAIN__a"], ["Val__a"], ["notes"]),
        (["wiki.train", "wiki.test"], ["wiki.train"], ["wiki.test"], []),
        (["train-00000-of-00002", "train_1", "dev_1"], ["train-00000-of-00002", "train_1"], ["dev_1"], []),
    ],
)
def test_splits_are_told_by_their_names(
    names: list[str], train: list[str], validation: list[str], unused: list[str], tmp_path: Path
) -> None:
    root = folder_of(tmp_path / "set", **{name: f"the text of {name}\n" for name in names})
    for split, expected in (("train", train), ("validation", validation)):
        dataset = open_windows(str(root), config=CONFIG, split=split)
        assert content(dataset) == expected_tokens([f"the text of {name}\n" for name in expected])
    before = opened(root)
    for name in unused:
        assert f"not read: {name}.txt" in before.found
    held_out = root / f"{validation[0].replace('__', '/')}.txt"
    held_out.write_text(held_out.read_text().upper())
    assert opened(root).sha256 != before.sha256


def test_links_of_a_folder_are_followed_and_end_where_they_lead_back(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", a="here " * 20)
    folder_of(tmp_path / "disk", b="there " * 20)
    (root / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(root)
    assert bytes(content(opened(root), end=0)).count(b"there") == 19


def test_names_that_only_contain_a_split_are_none(tmp_path: Path) -> None:
    names = ["training-guide", "test-driven", "development"]
    root = folder_of(tmp_path / "docs", **{name: name * 20 for name in names})
    assert content(opened(root)).count(256) == 3


def long_parquet() -> bytes:
    table = pyarrow.table({"text": [str(np.random.default_rng(i).bytes(30)) for i in range(200)]})
    file = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, file, use_dictionary=False)
    return file.getvalue().to_pybytes()


def parquet_of_latin_1() -> bytes:
    offsets = pyarrow.py_buffer(np.array([0, 4], np.int32))
    strings = pyarrow.StringArray.from_buffers(1, offsets, pyarrow.py_buffer(b"caf\xe9"))
    file = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": strings}), file)
    return file.getvalue().to_pybytes()


def parquet_with_a_column_twice() -> bytes:
    file = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), file)
    return file.getvalue().to_pybytes()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n" * 9
BROKEN = {
    "page.parquet": (lambda: flipped(long_parquet(), 2000), "not a readable Parquet file"),
    "cut.parquet": (lambda: long_parquet()[:-9], "not a readable Parquet file"),
    "latin.parquet": (parquet_of_latin_1, "holds a string that is not UTF-8"),
    "empty.parquet": (bytes, "not a readable Parquet file"),
    "twice.parquet": (parquet_with_a_column_twice, "has the column 'text' twice: rename one of them"),
    "empty.txt": (bytes, r"has \d tokens, one window needs 17"),
    "blank.csv": (lambda: b"text\n", "has 0 tokens, one window needs 17"),
    "short.txt": (lambda: b"ten letter", "tokens, one window needs 17: use a longer text or --seq-len"),
    "latin.md": (lambda: b"caf\xe9", "iconv -f WINDOWS-1252 -t UTF-8"),
    "sjis.txt": (lambda: b"\x83\x65\x81\x5b", "iconv -f ENCODING -t UTF-8"),
    "little.txt": (lambda: "caf\xe9 au lait".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
    "big.txt": (lambda: "caf\xe9 au lait".encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8"),
    "odd.txt": (lambda: "lait".encode("utf-16") + b"x", "begins as UTF-16"),
    "binary.txt": (lambda: b"\x7fELF\0\1" * 9, "holds zero bytes"),
    "pointer.txt": (lambda: POINTER, "is a pointer of Git LFS, .* type `git lfs pull`"),
    "pointer.parquet": (lambda: POINTER, "is a pointer of Git LFS, .* type `git lfs pull`"),
    "packed.txt": (lambda: bz2.compress(BOOK.encode()), "is packed with bzip2"),
    "late.txt": (lambda: b"a" * 99_999 + b"\0", "holds zero bytes .after 99,999 characters"),
    "late.csv": (lambda: b"text\n" + b"a" * 99_999 + b"\0", "holds zero bytes"),
    "book.md": (lambda: b"PK\3\4\24\0\0\0\0\0", "is a zip archive"),
    "blanks.csv": (lambda: b"id, text\n1,\n", "has 1 tokens, one window"),
    "latin.md.gz": (lambda: gzip.compress(b"caf\xe9"), r"zcat .*latin.md.gz.* iconv -f WINDOWS-1252 -t UTF-8 > "),
    "cut.txt.gz": (lambda: gzip.compress(BOOK.encode())[:-20], "is damaged"),
    "flip.txt.gz": (lambda: flipped(gzip.compress(BOOK.encode()), 60), "is damaged"),
    "cut.jsonl": (lambda: b'{"text": "a"}\n{"text": "b', "line 2 of .* is not whole JSON"),
    "cut.json": (lambda: b'[{"text": "a"}, {"te', "is not whole JSON"),
    "deep.json": (lambda: b"[" * 100_000, "is not whole JSON"),
    "list.json": (lambda: b'["a", "b"]', "record 1 of .* is str"),
    "other.jsonl": (lambda: b'{"text": "a"}\n7', "line 2 of .* is int"),
    "half.jsonl": (lambda: b'{"text": "\\ud800"}', "holds half a character"),
    "lacks.jsonl": (lambda: b'{"text": "a"}\n{"text": null}\n{"b": ""}', "line 3 of .* has no 'text', as others have"),
    "twice.jsonl": (lambda: b'{"text": ""}\n{"text": "", "text": ""}', "line 2 of .* has 'text' twice in one record"),
    "twice.csv": (lambda: b"text,id,text\n1,a,b\n", "has the column 'text' twice: rename one of them"),
    "ragged.csv": (lambda: b"id,text\n1,a\n2,b,c\n", "line 3 of .* has 3 fields, the header 2"),
    "named.csv": (lambda: b"sep=;\nid;text\n1;a\n2;b;c\n", "line 4 of .* has 3 fields, the header 2"),
    "quote.csv": (lambda: b'id,text\n1,"a\n', "line 2 of .* cannot be read"),
    "latin.csv": (lambda: b"text\ncaf\xe9\n", "iconv"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("in_folder", [False, True])
def test_a_broken_file_is_named_in_one_line(name: str, in_folder: bool, tmp_path: Path, cache: Path) -> None:
    make, message = BROKEN[name]
    file = tmp_path / "set" / name
    file.parent.mkdir()
    file.write_bytes(make())
    with pytest.raises(DataError, match=message.partition(":")[0]) as error:
        opened(file.parent if in_folder else file)
    assert in_folder or str(file) in str(error.value)
    assert name in str(error.value) or "one window needs" in message
    assert "\n" not in str(error.value) and "make room" not in str(error.value)
    assert not list(cache.glob("*.tmp"))


def test_folders_and_files_that_cannot_be_read(tmp_path: Path) -> None:
    dangling = tmp_path / "set" / "gone.txt"
    dangling.parent.mkdir()
    with pytest.raises(DataError, match=r"set has no text: it needs files that end in \.txt"):
        open_windows(f"file:{dangling.parent}", config=CONFIG)
    dangling.symlink_to("nowhere")
    with pytest.raises(DataError, match=r"gone.txt cannot be read \(a link to a file that is not there\)"):
        open_windows(f"file:{dangling.parent}", config=CONFIG)
    with pytest.raises(DataError, match="is a link to nowhere, which does not exist"):
        open_windows(f"file:{dangling}", config=CONFIG)
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.txt").write_text("a")
    write_table(tmp_path / "mixed" / "b.csv", ["b"])
    with pytest.raises(DataError, match=r"has plain texts \(a.txt\) beside tables \(b.csv\)"):
        open_windows(f"file:{tmp_path / 'mixed'}", config=CONFIG)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file:bok.txt", r"bok.txt does not exist \(did you mean .*/?book.txt\?\)"),
        ("bok.txt", r"did you mean book.txt"),
        ("./bok", r"does not exist"),
        ("book", r"did you mean book.txt"),
        ("deep/BOOK.md", r"did you mean deep/Book.md"),
        ("deep/book", r"did you mean deep/Book.md"),
        ("none/book.jsonl", r"none/book.jsonl does not exist: give the path of what is there"),
        ("a/b/c", r"a/b/c does not exist"),
        ("~/no-such-book", r"does not exist"),
        ("~no-such-user/book", r"there is no such home folder: type it out"),
        ("C:\\texts\\book", r"does not exist"),
        ("https://example.org/book.txt", r"is an address: download it first"),
        ("file:", r"'file:' names no file: give the path"),
    ],
)
def test_a_missing_path_is_not_asked_for_on_the_hub(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("asked for a path on the hub")

    monkeypatch.setattr("datasets.load_dataset_builder", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "book.txt").write_text(BOOK)
    (tmp_path / "deep" / "Book.md").write_text(BOOK)
    with pytest.raises(DataError, match=message):
        open_windows(name, config=CONFIG)


@pytest.mark.parametrize(
    ("addresses", "proxies", "offline"), [([], {}, "1"), ([()], {}, None), ([], {"https": "http://proxy:1"}, None)]
)
def test_where_no_network_is_nothing_is_retried(
    addresses: list[object], proxies: dict[str, str], offline: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that cannot be found is not asked six times, with pauses between; what was fetched before is still read."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # so that it is as before in the end
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def lookup(host: str, port: object) -> list[object]:
        if host == "huggingface.co" and not addresses:
            raise socket.gaierror(-2, "Name or service not known")
        return addresses

    def ask(name: str, config: str | None) -> None:
        raise ConnectionError(str(os.environ.get("HF_HUB_OFFLINE")))

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(sources, "getproxies", lambda: proxies)
    monkeypatch.setattr("datasets.load_dataset_builder", ask)
    with pytest.raises(DataError, match=rf"ConnectionError: {offline}\).*check name and network"):
        open_windows("stories", config=CONFIG)


def test_a_column_of_what_has_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(BOOK)
    for path in (tmp_path / "a.txt", tmp_path):
        with pytest.raises(DataError, match=r"--text-column body with .*, which has no columns: leave it out"):
            open_windows(str(path), config=CONFIG, text=TextOptions(column="body"))


def test_a_changed_file_is_tokenized_again(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    for word in ("first", "other"):
        path.write_text(f"{word}\n" * 50)
        assert bytes(content(open_windows(str(path), config=CONFIG))).startswith(word.encode())


def test_tokens_are_read_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = content(open_windows("alice", config=CONFIG))
    written = sorted(path.name for path in cache.iterdir())
    monkeypatch.setattr(token_cache, "_tokenize", None)  # a second tokenization would fail
    assert content(open_windows("alice", config=CONFIG)) == first
    assert sorted(path.name for path in cache.iterdir()) == written
    assert not [name for name in written if "tmp" in name]


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("name", ["*.bin", "*.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda x: x[: len(x) // 2],
        lambda x: flipped(x, 30),
        lambda x: x.replace(b'n_bytes\\": 200', b'n_bytes\\": 201') if b"n_bytes" in x else flipped(x, -1),
    ],
)
def test_a_damaged_cache_is_made_again(
    name: str, damage: Callable, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = TextOptions(max_tokens=200)
    whole = open_windows("alice", config=CONFIG, text=options)
    assert capsys.readouterr().err == ""
    (file,) = cache.glob(name)
    file.write_bytes(damage(file.read_bytes()))
    again = open_windows("alice", config=CONFIG, text=options)
    assert (content(again), again.n_bytes) == (content(whole), whole.n_bytes)
    assert "cached tokens of alice are damaged" in capsys.readouterr().err


def test_failed_tokenization_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"fine\n" * 20_000 + b"caf\xe9\n" * 20_000)
    with pytest.raises(DataError, match=r"0xe9.*iconv -f WINDOWS-1252 -t UTF-8 .*latin.txt.* > .*latin-utf8.txt"):
        open_windows(str(path), config=CONFIG)
    assert not cache.exists()


@pytest.mark.parametrize("in_folder", [False, True])
def test_a_text_that_changes_before_it_was_read_whole_is_refused(in_folder: bool, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "texts" / "book.txt"
    path.parent.mkdir()
    path.write_text("first\n" * 50)
    found = sources.local(path.parent if in_folder else path, split="train", column="text")
    path.write_text("other\n" * 50)
    with pytest.raises(DataError, match=r"book\.txt was changed while it was read: start again when nothing writes"):
        token_cache.cached_tokens(found, tokenizer=get_tokenizer("bytes"))
    assert not [file for file in cache.iterdir() if file.suffix in (".bin", ".json")], "nothing of it is kept"


def test_parquet_round_trip(tmp_path: Path) -> None:
    texts = documents(100)
    path = tmp_path / "set.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": [*texts, None]}), path)
    options = TextOptions(column="body")
    train, validation = (open_windows(str(path), config=CONFIG, split=s, text=options) for s in ("train", "validation"))
    held_out = texts[HELD_OUT - 1 :: HELD_OUT]
    assert content(validation) == expected_tokens(held_out)
    assert content(train) == expected_tokens([text for text in texts if text not in held_out])
    assert train.bytes_per_token < 1.0  # the end of text is a token without bytes
    with pytest.raises(DataError, match=r"no column 'text'.*body"):
        open_windows(str(path), config=CONFIG)


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_whose_card_says_what_is_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None, streaming: bool
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    texts = documents(30)
    folder = tmp_path / "set"
    folder.mkdir()
    for name, part in (("a", texts[:20]), ("b", texts[20:])):
        pyarrow.parquet.write_table(pyarrow.table({"text": part}), folder / f"{name}.parquet")
    files = "".join(f"  - {{split: {x}, path: {y}.parquet}}\n" for x, y in (("train", "a"), ("validation", "b")))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n# A set\n")
    options = TextOptions(streaming=streaming)
    assert content(open_windows(str(folder), config=CONFIG, text=options)) == expected_tokens(texts[:20])
    held_out = open_windows(str(folder), config=CONFIG, split="validation", text=options)
    assert content(held_out) == expected_tokens(texts[20:])


def test_folder_of_save_to_disk(tmp_path: Path, offline: None) -> None:
    import datasets

    texts = documents(40)
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "saved")
    dataset = open_windows(str(tmp_path / "saved"), config=CONFIG, split="validation")
    assert content(dataset) == expected_tokens(texts[HELD_OUT - 1 :: HELD_OUT])
    with pytest.raises(DataError, match="leave --streaming out"):
        open_windows(str(tmp_path / "saved"), config=CONFIG, text=TextOptions(streaming=True))


def test_max_tokens_stops_reading(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": documents(1000)}), path)
    dataset = open_windows(str(path), config=CONFIG, text=TextOptions(max_tokens=200))
    assert (dataset.n_tokens, dataset.n_bytes) == (200, 200 - content(dataset).count(256))
    gpt2 = open_windows(str(path), config=replace(GPT2_CONFIG, seq_len=8), text=TextOptions(max_tokens=50))
    text = b"".join(encoding().decode_tokens_bytes(x for x in content(gpt2) if x != 50_256))
    assert (gpt2.n_tokens, gpt2.n_bytes) == (50, len(text))


def test_hub_set_without_a_network_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach 'some/set' on the Hub\nmore")

    monkeypatch.setattr("datasets.load_dataset_builder", refuse)
    with pytest.raises(DataError, match="--data alice or --data file:PATH") as error:
        open_windows("some/set:plain", config=CONFIG)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "config", "options", "message"),
    [
        ("alise", CONFIG, {}, "did you mean alice"),
        ("mnist", CONFIG, {}, "'mnist' is images, this model consumes text: use alice"),
        ("file:none.txt", CONFIG, {}, "none.txt does not exist"),
        ("alice", replace(CONFIG, tokenizer="byte"), {}, "did you mean bytes"),
        ("alice", replace(CONFIG, tokenizer="gpt2"), {}, "vocab_size=257 does not hold the 50257 tokens"),
        ("alice", CONFIG, {"seq_len": 17}, "from 1 to 16"),
        ("alice", CONFIG, {"split": "valid"}, "did you mean validation"),
        ("alice", CONFIG, {"text": TextOptions(streaming=True)}, "only Hugging Face sets"),
        ("alice", CONFIG, {"text": TextOptions(column="body")}, "alice, which has no columns: leave it out"),
        ("alice", replace(CONFIG, seq_len=200_000), {}, "one window needs 200001"),
    ],
)
def test_bad_requests(name: str, config: GPT2Config, options: dict, message: str, offline: None) -> None:
    with pytest.raises(DataError, match=message):
        open_windows(name, config=config, **options)


def test_other_file_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.pdf"
    path.write_text("text")
    with pytest.raises(DataError, match=r"use \.txt, .* or \.parquet"):
        open_windows(str(path), config=CONFIG)


def test_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("PARALAB_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(DataError, match="set PARALAB_CACHE"):
        open_windows("alice", config=CONFIG)


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damaged_assets_are_refused(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = bytearray(assets.read_asset("alice.txt"))
    text[1000] ^= 1
    if damage == "flip":
        (tmp_path / "alice.txt").write_bytes(text)
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    with pytest.raises(DataError, match="reinstall with"):
        open_windows("alice", config=CONFIG)
