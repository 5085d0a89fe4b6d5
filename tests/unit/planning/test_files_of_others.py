"""Tables of cases as spreadsheets save them, and descriptions of devices that are damaged."""

from pathlib import Path

import pytest

from paralab import cli
from paralab.planning import cases

CASES = "layers,hidden,gpu,dp,tp\n24,2048,A100-SXM4-80GB,8,1\n"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_a_table_is_read_whatever_stands_between_cells(tmp_path: Path, between: str, end: str, mark: str) -> None:
    commas, others = tmp_path / "commas.csv", tmp_path / "others.csv"
    commas.write_text(CASES)
    others.write_bytes((mark + CASES.replace(",", between).replace("\n", end)).encode())
    (want,), (got,) = cases.read(commas), cases.read(others)
    assert vars(got) == vars(want) and want.error is None


@pytest.mark.parametrize("content", ["[" * 100_000, "", '{"gpu": "mine"', "[1, 2]", "null", "\x00"])
@pytest.mark.parametrize("flag", ["--gpu", "--device"])
def test_a_damaged_description_is_one_line(
    content: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = tmp_path / "device.json"
    device.write_text(content)
    words = ["plan", "--layers", "2", "--hidden", "64", "--heads", "2", "--n-gpus", "2", flag, str(device)]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"paralab: error: {device} ")
