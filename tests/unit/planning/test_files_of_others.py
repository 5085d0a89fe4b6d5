"""Tables of cases as spreadsheets save them, and descriptions of devices that are damaged."""

from pathlib import Path

import pytest

from paralab import cli
from paralab.errors import ConfigError
from paralab.planning import cases, hardware

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


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-SXM-80GB"),
        ("NVIDIA H100 NVL", "H100-NVL-94GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("  nvidia  A100 80GB  pcie", "A100-PCIe-80GB"),
        ("NVIDIA H200", "H200-SXM-141GB"),
        ("NVIDIA B200", "B200-SXM"),
        ("NVIDIA B300 SXM6 AC", "B300-SXM"),
        ("b300", "B300-SXM"),
        ("NVIDIA GeForce RTX 4090", "RTX4090-24GB"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("AMD Instinct MI300X", "MI300X"),
        ("rtx4090", "RTX4090-24GB"),
        ("H100 SXM5", "H100-SXM-80GB"),
        ("a100_sxm_40gb", "A100-SXM4-40GB"),
        ("tpu-v5e", "TPU v5e"),
        *((name.upper(), name) for name in hardware.known()),
    ],
)
def test_a_device_is_found_by_the_name_that_its_driver_has(written: str, name: str) -> None:
    assert hardware.find(written).gpu == hardware.is_known(written) == name


@pytest.mark.parametrize(
    "name", ["NVIDIA H200 NVL", "RTX 4090 Laptop GPU", "L40", "A100 80GB", "h100", "V100 32GB", "NVIDIA", ""]
)
def test_a_device_of_another_kind_is_not_taken_for_a_known_one(name: str) -> None:
    with pytest.raises(ConfigError, match="is unknown: use one of "):
        hardware.find(name)
