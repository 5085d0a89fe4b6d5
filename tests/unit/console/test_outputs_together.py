"""Options that name one file, or a file that is read or of another kind: refused before any work, nothing is lost."""

import re
from pathlib import Path

import pytest

from paralab import cli
from paralab.console.outputs import check_outputs
from paralab.errors import UsageError

TEXT = "\n\n".join(" ".join(f"word{i * j % 97}" for j in range(30)) for i in range(1, 40))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("data dedup a.txt --out b.txt --pairs b.txt", "--out and --pairs are both b.txt, and one would replace"),
        ("data dedup a.txt --out b.txt --pairs ./b.txt", "--out and --pairs are both b.txt"),
        ("data dedup a.txt --out b.txt --pairs a.txt", "a.txt is one of the files that are read, .* with --pairs"),
        ("data dedup a.txt --out a.txt", "a.txt is one of the files that are read, .* with --out"),
        ("data dedup a.txt --measure --out b.txt", "--measure writes nothing: leave --out out"),
        ("data dedup a.txt --measure --pairs b.csv", "--measure writes nothing: leave --pairs out"),
        ("optimise --problem signal --out a.svg --plot a.svg", "--out and --plot are both a.svg"),
        ("optimise --problem signal --out a.txt", "--out a.txt is no table: use a name ending in .csv"),
        ("run --model gpt2 --size tiny --nproc 1 --out a.csv --trace a.csv", "--out and --trace are both a.csv"),
        ("explain zero3 --out a.png", "--out a.png: the picture is written as SVG, use a name ending in .svg"),
        ("plan --model gpt2 --n-gpus 8 --out a.csv --report a.csv", "--out and --report are both a.csv|--report a.csv"),
    ],
)
def test_commands(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(TEXT)
    assert cli.main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)
    assert Path("a.txt").read_text() == TEXT and [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_link_to_the_other_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "b.csv").symlink_to(tmp_path / "a.csv")
    with pytest.raises(UsageError, match="--out and --plot are both"):
        check_outputs({"--out": tmp_path / "a.csv", "--plot": tmp_path / "b.csv"})
    check_outputs({"--out": tmp_path / "a.csv", "--plot": None, "--report": tmp_path / "c.html"})
    check_outputs({"--out": "/dev/null", "--plot": "/dev/null"})
