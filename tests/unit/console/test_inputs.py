"""Files that are no files: links that lead to themselves, devices and pipes that nobody writes to."""

import os
from pathlib import Path

import pytest

from paralab.benchmarks.report.sources import load
from paralab.console.inputs import check_has_end, read_whole
from paralab.console.outputs import check_outputs
from paralab.data import sources
from paralab.data.dataset import SPLIT_NAMES
from paralab.data.text_files import files_of
from paralab.errors import DataError, UsageError
from paralab.options import files


def test_what_may_have_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.txt").symlink_to("/dev/zero")
    for name, what in (("a.txt", "a named pipe"), ("b.txt", "a device")):
        with pytest.raises(OSError, match=what):
            check_has_end(tmp_path / name)
    with pytest.raises(DataError, match=r"a.txt cannot be read .it is a named pipe"):
        sources.local(tmp_path, split="train", column="text")
    for name in ("r.csv", "c.yaml"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=r"r.csv cannot be read .it is a named pipe"):
        load([tmp_path / "r.csv"])
    with pytest.raises(UsageError, match=r"c.yaml: it is a named pipe"):
        files.load(tmp_path / "c.yaml")


def test_a_pipe_of_the_shell_is_read() -> None:
    here, there = os.pipe()
    with os.fdopen(here), os.fdopen(there, "wb") as file:
        file.write(b"x")
        file.close()
        assert read_whole(Path(f"/dev/fd/{here}")) == b"x"


def test_a_link_to_itself_is_refused_or_replaced(tmp_path: Path) -> None:
    (tmp_path / "r.csv").symlink_to("r.csv")
    with pytest.raises(DataError, match=r"r.csv cannot be read"):
        load([tmp_path / "r.csv"])
    check_outputs({"--out": tmp_path / "r.csv", "--trace": tmp_path / "t.json"})


@pytest.mark.parametrize("name", [*SPLIT_NAMES, "Holdout", "dev_data", "test-set", "wiki.evalset"])
def test_held_out_texts_by_their_names(tmp_path: Path, name: str) -> None:
    for file in ("train.txt", f"{name}.txt", f"sub/TRAIN/{name}.txt"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("x")
    splits, _ = files_of(tmp_path)
    assert {x.name for x in splits["train"]} >= {"train.txt"}
    if SPLIT_NAMES.get(name) != "train":
        assert splits["validation"] == [tmp_path / f"{name}.txt"]
