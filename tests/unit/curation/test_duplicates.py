"""Duplicates: what is found is what exact Jaccard says, whatever the blocks, workers and interruptions."""

import csv
import json
import random
import re
import resource
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paralab.commands import data
from paralab.console.phases import hidden
from paralab.curation import kept, units, without
from paralab.curation.duplicates import exact
from paralab.curation.planted import jaccard, plant
from paralab.curation.signatures import EXACT, Near, minhash, shingles
from paralab.curation.units import Texts, Unit
from paralab.data import open_dataset
from paralab.data.text import TokenWindows
from paralab.errors import DataError, UsageError
from paralab.models.gpt2 import GPT2Config

ALICE = Texts.of(["alice"], by=None, column="text")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARALAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "signatures"


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def dedup(*words: object) -> int:
    return data.main(["dedup", *map(str, words)])


@given(st.text("aB \n,é漢", max_size=60), st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_shingles_are_those_of_the_whole_text_whatever_its_blocks(
    text: str, n: int, size: int, characters: bool
) -> None:
    near = Near(shingle=n, characters=characters)
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    parts = list(text.lower()) if characters else text.lower().replace(",", " ").split()
    joint = "" if characters else " "
    want = [joint.join(parts[i : i + n]) for i in range(len(parts) - n + 1)] or [joint.join(parts)]
    assert [shingle for some in shingles(blocks, near) for shingle in some] == want


def test_a_minhash_estimates_the_jaccard_similarity() -> None:
    near = Near(shingle=1, permutations=512)
    for common in (50, 100, 180):
        one, other = ([f"w{i}" for i in range(start, start + 200)] for start in (0, 200 - common))
        estimate = (minhash([" ".join(one)], near) == minhash([" ".join(other)], near)).mean()
        true = jaccard(set(one), set(other))
        assert abs(estimate - true) < 4 * (true * (1 - true) / 512) ** 0.5


def test_planted_copies_are_found_as_exact_jaccard_says() -> None:
    copies = plant(ALICE.units(), Near(), threshold=0.8, most=120)
    true = {i for i, copy in enumerate(copies) if copy.jaccard >= 0.8}
    found = {i for i, copy in enumerate(copies) if copy.found}
    assert 20 < len(true) < 100
    assert len(true & found) / len(found) > 0.9, "precision"
    assert len(true & found) / len(true) > 0.9, "recall"
    assert all(copy.found for copy in copies if copy.jaccard > 0.95)
    assert not any(copy.found for copy in copies if copy.jaccard < 0.6)


def test_the_first_of_those_that_repeat_is_kept_and_the_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    long, other = (" ".join(f"w{rng.random()}" for _ in range(60)) for _ in range(2))
    texts = [long, "a b", other, "a b", f"{long} more", "a c", long]
    path, out, pairs = rows(tmp_path / "r.jsonl", texts), tmp_path / "out.jsonl", tmp_path / "pairs.csv"
    assert dedup(path, "--out", out, "--pairs", pairs) == 0
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == [long, "a b", other, "a c"]
    n_bytes = sum(map(len, (long, "a b", other, "a c")))
    assert capsys.readouterr().out.splitlines()[-1] == f"kept        4, {n_bytes:,} bytes, in {out}"
    found = [(row["document"], row["of_document"], row["similarity"]) for row in csv.DictReader(pairs.open())]
    assert [x[:2] for x in found] == [("3", "1"), ("4", "0"), ("6", "0")]
    assert found[0][2] == found[2][2] == "exact" and 0.8 <= float(found[1][2]) <= 1
    assert dedup(path, "--out", out, "--exact") == 0
    assert len(out.read_text().splitlines()) == 5


@pytest.mark.parametrize("permutations", [16, 128])
def test_a_similarity_that_is_the_threshold_is_enough(permutations: int, tmp_path: Path) -> None:
    texts = ["One two three four five six.", "one, two three four five six", "six five four three two one"]
    path, out = rows(tmp_path / "r.jsonl", texts), tmp_path / "out.jsonl"
    assert dedup(path, "--out", out, "--threshold", "1", "--permutations", permutations) == 0
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == [texts[0], texts[2]]


def test_another_column_of_the_same_file_is_another_text(tmp_path: Path) -> None:
    path, out = tmp_path / "r.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps({"text": "same", "title": f"title {i}"}) + "\n" for i in range(3)))
    for column, kept_of_it in (("text", 1), ("title", 3)):
        assert dedup(path, "--out", out, "--exact", "--text-column", column) == 0
        assert len(out.read_text().splitlines()) == kept_of_it


def test_texts_without_a_word_are_duplicates_only_where_they_are_equal(tmp_path: Path) -> None:
    path, out = rows(tmp_path / "r.jsonl", ["***", "}", "\N{GRINNING FACE}", "}", "a word"]), tmp_path / "out.jsonl"
    assert dedup(path, "--out", out) == 0
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == [
        "***",
        "}",
        "\N{GRINNING FACE}",
        "a word",
    ]


def test_what_is_kept_of_a_plain_text_can_be_trained_on(tmp_path: Path) -> None:
    text, out = tmp_path / "t.txt", tmp_path / "u.txt"
    text.write_text("one\ntwo\n\n\n\nthree\n \t\none\ntwo\n\nfour\n")
    assert dedup(text, "--out", out, "--exact") == 0
    assert out.read_text() == "one\ntwo\n\nthree\n\nfour\n\n"
    assert dedup(text, "--out", out, "--exact", "--by", "line") == 0
    assert out.read_text() == "one\ntwo\nthree\nfour\n"
    config = GPT2Config(1, 8, 1, seq_len=8, vocab_size=257, tokenizer="bytes")
    read = open_dataset(f"file:{out}", config=config)
    assert isinstance(read, TokenWindows) and read.n_tokens == len("one\ntwo\nthree\nfour")


def test_whole_files_are_documents_that_are_read_in_blocks(tmp_path: Path) -> None:
    long = "".join(f"line {i}\n" for i in range(20_000))
    for name, text in (("a", long), ("b", long + "more\n"), ("c", 'quoted " and \\\n'), ("d", long)):
        (tmp_path / f"{name}.txt").write_text(text)
    out = tmp_path / "out.jsonl"
    assert dedup(tmp_path, "--by", "document", "--out", out) == 0
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == [long, 'quoted " and \\\n']


def test_interrupted_work_goes_on_where_it_was(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    want = kept.signatures_of(ALICE, EXACT, workers=1, phases=hidden()).copy()
    (whole,) = cache.glob("*.bin")
    size = EXACT.record.itemsize
    whole.with_suffix(".sha256").unlink()
    whole.write_bytes(whole.read_bytes()[: 100 * size + 7])  # the last record is torn
    seen: list[int] = []
    real = kept.signatures
    monkeypatch.setattr(kept, "signatures", lambda some, near: seen.append(len(some)) or real(some, near))
    again = kept.signatures_of(ALICE, EXACT, workers=1, phases=hidden())
    assert np.array_equal(again, want) and sum(seen) == len(want) - 100
    assert "going on after 100 paragraphs" in capsys.readouterr().err
    kept.signatures_of(ALICE, EXACT, workers=1, phases=hidden())
    assert sum(seen) == len(want) - 100, "what is whole is not made again"
    whole.write_bytes(whole.read_bytes().replace(b"\x01", b"\x02", 1))
    assert np.array_equal(kept.signatures_of(ALICE, EXACT, workers=1, phases=hidden()), want)
    assert "damaged" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "LONGEST_CHARS", 1 << 16)
    path, peaks = tmp_path / "t.txt", []
    for count in (2, 12):
        path.write_text("".join(f"{i % 7} line of a text\n" * 10_000 for i in range(count)))  # no blank line in it
        texts = Texts.of([str(path)], by="paragraph", column="text")
        tracemalloc.start()
        found = kept.signatures_of(texts, EXACT, workers=1, phases=hidden())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found["n_chars"].max() <= units.LONGEST_CHARS and found["n_bytes"].sum() >= path.stat().st_size - 60
    assert peaks[1] < 1.3 * peaks[0] and peaks[1] < path.stat().st_size
    monkeypatch.setattr(units, "LONGEST_CHARS", 7)
    assert "".join(units.parted(["0123456789" * 3, "ab"], re.compile("\n"))) == "0123456789" * 3 + "ab"


def test_a_process_is_given_few_units_and_little_text() -> None:
    sizes = {chars: [Unit(0, i, "x" * chars) for i in range(1100)] for chars in (1, 1 << 14)}
    assert [len(task) for task in kept.tasks(iter(sizes[1]))] == [512, 512, 76]
    assert [len(task) for task in kept.tasks(iter(sizes[1 << 14]))] == [16] * 68 + [12]


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    path = rows(tmp_path / "r.jsonl", ["x"])
    assert Texts.of([str(path), str(tmp_path)], by=None, column="text").files == (path,)


def test_a_disk_that_is_full_is_one_line_and_leaves_no_half(tmp_path: Path) -> None:
    texts = Texts.of([str(rows(tmp_path / "r.jsonl", ["one", "two" * 100_000]))], by=None, column="text")
    found = kept.signatures_of(texts, EXACT, workers=1, phases=hidden())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(UsageError, match=r"out.jsonl cannot be written \(File too large\): make room there"):
            without.write(tmp_path / "out.jsonl", texts, found, [], phases=hidden())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.glob("*out*")] == []


@pytest.mark.parametrize("when", ["while signatures are made", "before what is kept is written"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.write_text(path.read_text().replace("two", "six")), "r.jsonl was changed while it was read"),
        (lambda path: path.write_text(path.read_text() + '{"text": "fo'), "r.jsonl was changed while it was read"),
        (Path.unlink, r"r.jsonl cannot be read \(No such file or directory\)"),
    ],
)
def test_a_text_that_changes_meanwhile_is_refused_and_nothing_is_kept_of_it(
    change: Callable[[Path], None], said: str, when: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = rows(tmp_path / "r.jsonl", ["one", "two", "two"]), (kept.signatures, without.dropped)
    if when == "while signatures are made":
        monkeypatch.setattr(kept, "signatures", lambda *these: (real[0](*these), change(path))[0])
    else:
        monkeypatch.setattr(without, "dropped", lambda *these, **more: (real[1](*these, **more), change(path))[0])
    with pytest.raises(DataError, match=said):
        dedup(path, "--exact", "--out", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    if when == "while signatures are made":
        assert list(cache.glob("*.bin")) == list(cache.glob("*.sha256")) == []


def test_exact_duplicates_are_those_of_the_texts(tmp_path: Path) -> None:
    texts = Texts.of([str(rows(tmp_path / "r.jsonl", ["x", "y", "x", "X", "y", "x"]))], by=None, column="text")
    found = kept.signatures_of(texts, EXACT, workers=1, phases=hidden())
    assert [(one.unit, one.of) for one in exact(found)] == [(2, 0), (4, 1), (5, 0)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threshold", "0"], "above 0 up to 1"),
        (["--threshold", "1.01"], "above 0 up to 1"),
        (["--workers", "0"], "at least 1"),
        (["--permutations", "8"], "at least 16"),
        ([], "--out is needed"),
        (["--out", "x.csv"], r"ending in \.txt or \.jsonl"),
        (["--by", "document", "--out", "x.txt"], r"ending in \.jsonl"),
        (["--exact", "--measure"], "leave --exact out"),
        (["--out", "nowhere/x.txt"], "cannot be written"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        dedup("alice", *words)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "no text in it"), (b" \n\n ", "no text in it"), (b"\x00ab", "not text"), (b"\xff\xfea", "UTF")],
)
def test_texts_that_are_none_are_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        data.main(["stats", str(path), "--by", "document" if not content else "line"])


def test_near_duplicates_without_their_package_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("paralab.curation.signatures.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install datasketch"):
        dedup("alice", "--out", tmp_path / "x.txt")
    assert dedup("alice", "--out", tmp_path / "x.txt", "--exact") == 0


def test_statistics_are_those_of_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows(tmp_path / "r.jsonl", ["naïve one", "two", "two", "\x01", "\ufeff", " "])
    assert data.main(["stats", str(path)]) == 0
    said = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    figures = {name: figure.strip() for name, figure in said.items()}
    assert figures["documents"] == "5" and figures["text"] == "20 bytes, 17 characters" and figures["words"] == "4"
    assert figures["exact duplicates"] == "1 documents, 15.00% of the bytes"
    assert figures["odd characters"].startswith("2 ")
