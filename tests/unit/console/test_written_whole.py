"""What does not fit on the disk leaves what was there, and one line."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from paralab import cli
from paralab.console.outputs import append, folder_written_whole, write_whole, written_whole
from paralab.errors import DataError, UsageError, WriteError
from paralab.measure.trace import export

PLACE = 4096  # bytes that a file may have
LARGE = np.zeros(PLACE)


@pytest.fixture
def full() -> Iterator[None]:
    """Let no file grow beyond `PLACE` bytes, as a disk without room does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PLACE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda folder: (folder / "a.txt").write_bytes(LARGE.tobytes()),
    "safetensors": lambda folder: save_file({"a": torch.from_numpy(LARGE)}, folder / "a.safetensors"),
}


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("is_there", [False, True])
def test_of_a_folder_that_does_not_fit_nothing_stays(kind: str, is_there: bool, tmp_path: Path) -> None:
    target = tmp_path / "weights"
    if is_there:
        target.mkdir()
    with pytest.raises(UsageError, match=r"weights cannot be written .File too large.: make room"):
        with folder_written_whole(target) as folder:
            (folder / "config.json").write_text("{}")
            WRITERS[kind](folder)
    assert list(tmp_path.iterdir()) == [target] * is_there and (not is_there or not list(target.iterdir()))


def test_a_folder_is_there_whole_and_errors_of_reading_are_not_those_of_writing(tmp_path: Path) -> None:
    with folder_written_whole(tmp_path / "deep" / "weights") as folder:
        (folder / "a").write_text("1")
        (folder / "b").mkdir()
        assert list((tmp_path / "deep" / "weights").glob("a")) == []
    assert sorted(path.name for path in (tmp_path / "deep" / "weights").iterdir()) == ["a", "b"]
    for error in (FileNotFoundError(2, "No such file", str(tmp_path / "source")), DataError("damaged (os error 2)")):
        with pytest.raises(type(error)), folder_written_whole(tmp_path / "other"):
            raise error
        assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("full")
def test_a_file_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "samples.npz"
    file.write_text("before")
    with pytest.raises(UsageError, match="File too large"), written_whole(file) as content:
        np.savez(content, samples=LARGE)
    with pytest.raises(UsageError, match="File too large"):
        write_whole(file, LARGE.tobytes())
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


@pytest.mark.usefixtures("full")
def test_what_any_command_cannot_write_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_dispatch", lambda words: WRITERS["text"](tmp_path))
    assert cli.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not fit (File too large): make room" in line


@pytest.mark.usefixtures("full")
def test_a_line_that_does_not_fit_is_told_with_its_file(tmp_path: Path) -> None:
    append(tmp_path / "a", b"1\n")
    append(tmp_path / "a", b"2\n")
    assert (tmp_path / "a").read_bytes() == b"1\n2\n"
    with pytest.raises(WriteError, match=r"a cannot be written .File too large.: make room there"):
        append(tmp_path / "a", LARGE.tobytes())


@pytest.mark.usefixtures("full")
def test_of_a_trace_that_does_not_fit_nothing_stays(tmp_path: Path) -> None:
    """torch writes as much as fits, and says nothing."""
    for operations in (0, 100):
        path = tmp_path / f"trace \u00fc {operations}.json"
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            for _ in range(operations):
                torch.ones(2).sum()
        if operations:
            with pytest.raises(WriteError, match=f"{path} cannot be written whole: make room there"):
                export(found, path)
        else:
            export(found, path)
            assert "traceEvents" in json.loads(path.read_text())
    assert [file.name for file in tmp_path.iterdir()] == ["trace \u00fc 0.json"]
