"""Text: the built-in tokenizer without a network, windows, caches, local files and Hugging Face sets."""

import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.gpt2 import GPT2Config
from parallel.data import TextOptions, assets, encoding, get_tokenizer, open_dataset, sources, token_cache
from parallel.data.sources import text_file
from parallel.errors import DataError

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


def content(dataset: object) -> list[int]:
    """Return all token ids of a split, from the token file."""
    return dataset.file.tokens().tolist()


def test_gpt2_encoding_needs_no_network(offline: None) -> None:
    encoding.cache_clear()
    gpt2 = encoding()
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.n_vocab == 50_257 and gpt2.eot_token == 50_256
    assert open_dataset("alice", config=GPT2_CONFIG).n_samples > 0


@given(text=st.text())
@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_tokens_decode_to_the_text(name: str, text: str) -> None:
    tokenizer = get_tokenizer(name)
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode([*ids, tokenizer.end_of_text, 65]) == text


def test_special_tokens_in_text_stay_text() -> None:
    assert 50_256 not in get_tokenizer("gpt2").encode(["a<|endoftext|>b"])[0]


def test_alice_holds_out_the_last_chapter() -> None:
    train, validation = (open_dataset("alice", config=CONFIG, split=s) for s in ("train", "validation"))
    book = assets.read_asset("alice.txt")
    assert bytes(content(train) + content(validation)) == book
    assert bytes(content(validation)).startswith(b"CHAPTER XII.")
    assert train.n_bytes + validation.n_bytes == len(book)
    assert train.bytes_per_token == validation.bytes_per_token == 1.0
    assert train.sha256 == assets.SHA256["alice.txt"]


def test_windows_hold_every_token_once_with_its_successor() -> None:
    dataset = open_dataset("alice", config=GPT2_CONFIG, seq_len=50, split="validation")
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


PARAGRAPHS = st.lists(
    st.sampled_from(["one two", "", " ", "\t x", "it's", "\r", "\u3000全角", "\u00e9t\u00e9 ", "42!"])
)


@given(lines=PARAGRAPHS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_read_in_pieces_has_the_tokens_of_the_whole(
    lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_PIECE_BYTES", 5)
    path = tmp_path / "book.txt"
    path.write_bytes("\n".join(lines).encode())
    texts = []
    for split in ("train", "validation"):
        pieces = list(text_file(path, split=split).pieces())
        texts.append("".join(pieces))
        in_pieces = [token for ids in get_tokenizer("gpt2").encode(pieces) for token in ids]
        assert in_pieces == encoding().encode_ordinary(texts[-1])
    assert "".join(texts).encode() == path.read_bytes()


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    lines = [f"line {i} \u2014 caf\u00e9\n" for i in range(500)]
    path.write_text("".join(lines))
    train, validation = (open_dataset(f"file:{path}", config=CONFIG, split=s) for s in ("train", "validation"))
    assert bytes(content(train) + content(validation)).decode() == "".join(lines)
    assert 0.09 < validation.n_bytes / train.n_bytes < 0.12
    assert open_dataset(str(path), config=CONFIG).sha256 == train.sha256


def test_a_changed_file_is_tokenized_again(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    for word in ("first", "other"):
        path.write_text(f"{word}\n" * 50)
        assert bytes(content(open_dataset(str(path), config=CONFIG))).startswith(word.encode())


def test_tokens_are_read_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = content(open_dataset("alice", config=CONFIG))
    written = sorted(path.name for path in cache.iterdir())
    monkeypatch.setattr(token_cache, "_tokenize", None)  # a second tokenization would fail
    assert content(open_dataset("alice", config=CONFIG)) == first
    assert sorted(path.name for path in cache.iterdir()) == written
    assert not [name for name in written if "tmp" in name]


def test_a_torn_cache_is_made_again(cache: Path) -> None:
    whole = content(open_dataset("alice", config=CONFIG))
    (tokens,) = cache.glob("*.bin")
    tokens.write_bytes(tokens.read_bytes()[:1000])
    assert content(open_dataset("alice", config=CONFIG)) == whole


def test_failed_tokenization_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"fine\n" * 20_000 + b"caf\xe9\n" * 20_000)
    with pytest.raises(DataError, match="iconv"):
        open_dataset(str(path), config=CONFIG)
    assert [p.suffix for p in cache.iterdir()] in ([], [".lock"])


def documents(n: int) -> list[str]:
    return [f"document {i} \u2602" for i in range(n)]


def expected_tokens(texts: list[str]) -> list[int]:
    return [token for text in texts for token in (*text.encode(), 256)]


def test_parquet_round_trip(tmp_path: Path) -> None:
    texts = documents(100)
    path = tmp_path / "set.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": [*texts, None]}), path)
    options = TextOptions(column="body")
    train, validation = (open_dataset(str(path), config=CONFIG, split=s, text=options) for s in ("train", "validation"))
    held_out = texts[HELD_OUT - 1 :: HELD_OUT]
    assert content(validation) == expected_tokens(held_out)
    assert content(train) == expected_tokens([text for text in texts if text not in held_out])
    assert train.bytes_per_token < 1.0  # the end of text is a token without bytes
    with pytest.raises(DataError, match=r"no column 'text'.*body"):
        open_dataset(str(path), config=CONFIG)


@pytest.mark.parametrize("streaming", [False, True])
def test_local_hugging_face_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None, streaming: bool
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    texts = documents(30)
    folder = tmp_path / "set"
    folder.mkdir()
    for split, part in (("train", texts[:20]), ("validation", texts[20:])):
        pyarrow.parquet.write_table(pyarrow.table({"text": part}), folder / f"{split}.parquet")
    options = TextOptions(streaming=streaming)
    assert content(open_dataset(str(folder), config=CONFIG, text=options)) == expected_tokens(texts[:20])
    held_out = open_dataset(str(folder), config=CONFIG, split="validation", text=options)
    assert content(held_out) == expected_tokens(texts[20:])


def test_folder_of_save_to_disk(tmp_path: Path, offline: None) -> None:
    import datasets

    texts = documents(40)
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "saved")
    dataset = open_dataset(str(tmp_path / "saved"), config=CONFIG, split="validation")
    assert content(dataset) == expected_tokens(texts[HELD_OUT - 1 :: HELD_OUT])
    with pytest.raises(DataError, match="leave --streaming out"):
        open_dataset(str(tmp_path / "saved"), config=CONFIG, text=TextOptions(streaming=True))


def test_max_tokens_stops_reading(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": documents(1000)}), path)
    dataset = open_dataset(str(path), config=CONFIG, text=TextOptions(max_tokens=200))
    assert 200 <= dataset.n_tokens < 220


def test_hub_set_without_a_network_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach 'some/set' on the Hub\nmore")

    monkeypatch.setattr("datasets.load_dataset_builder", refuse)
    with pytest.raises(DataError, match="--data alice or --data file:PATH") as error:
        open_dataset("some/set:plain", config=CONFIG)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "config", "options", "message"),
    [
        ("alise", CONFIG, {}, "did you mean alice"),
        ("mnist", CONFIG, {}, "'mnist' is images, this model eats text: use alice"),
        ("file:none.txt", CONFIG, {}, "none.txt does not exist"),
        ("alice", replace(CONFIG, tokenizer="byte"), {}, "did you mean bytes"),
        ("alice", replace(CONFIG, tokenizer="gpt2"), {}, "vocab_size=257 does not hold the 50257 tokens"),
        ("alice", CONFIG, {"seq_len": 17}, "from 1 to 16"),
        ("alice", CONFIG, {"split": "valid"}, "did you mean validation"),
        ("alice", CONFIG, {"text": TextOptions(streaming=True)}, "only Hugging Face sets"),
        ("alice", replace(CONFIG, seq_len=200_000), {}, "one window needs 200001"),
    ],
)
def test_bad_requests(name: str, config: GPT2Config, options: dict, message: str, offline: None) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(name, config=config, **options)


def test_other_file_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.pdf"
    path.write_text("text")
    with pytest.raises(DataError, match=r"\.txt or \.parquet"):
        open_dataset(str(path), config=CONFIG)


def test_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("PARALAB_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(DataError, match="set PARALAB_CACHE"):
        open_dataset("alice", config=CONFIG)


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damaged_assets_are_refused(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = bytearray(assets.read_asset("alice.txt"))
    text[1000] ^= 1
    if damage == "flip":
        (tmp_path / "alice.txt").write_bytes(text)
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    with pytest.raises(DataError, match="reinstall with"):
        open_dataset("alice", config=CONFIG)
