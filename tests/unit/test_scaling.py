"""The table of a cluster in a box: speed-up, the formula beside it, and the link where more nodes stop helping."""

import pytest

from benchmarks.scaling import bytes_per_s, table
from parallel.errors import UsageError
from tests.unit.synthetic_runs import run

MIB = 2**20


@pytest.mark.parametrize(("text", "wanted"), [("8mbit", 1e6), ("1gbit", 1.25e8), ("2.5gbit", 3.125e8)])
def test_bandwidth_in_bytes(text: str, wanted: float) -> None:
    assert bytes_per_s(text) == wanted


@pytest.mark.parametrize("text", ["fast", "10", "10mb"])
def test_what_is_no_bandwidth(text: str) -> None:
    with pytest.raises(UsageError, match="is not a bandwidth"):
        bytes_per_s(text)


def test_speed_up_formula_and_crossover() -> None:
    # gradients of 1 MiB: a ring of two sends 1 MiB, of three 4/3 MiB; one second of computing
    records = [
        run(nodes, group="g 80mbit", world_size=nodes, step_time_p50_s=step_s, comm_dp_wire_bytes=sent * MIB)
        for nodes, step_s, sent in [(1, 1.0, 0), (2, 0.625, 1), (3, 0.5, 4 / 3)]
    ]
    text = table(records, "g", ["80mbit"], 0.5)
    rows = {line.split()[1]: line.split() for line in text.splitlines() if line.strip().startswith("80mbit")}
    assert rows["2"][3:5] == ["0.625", f"{0.5 + MIB / 1e7:.3f}"]
    assert rows["2"][6:8] == ["1.60x", "80%"]
    assert rows["3"][6:8] == ["2.00x", "67%"]
    assert f"links faster than {2 * MIB * 8 / 1e6:,.0f} Mbit/s" in text
    assert "there is none on this machine" in text
