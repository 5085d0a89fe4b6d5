"""The table of a simulated cluster: speed-up, the formula beside it, and the link where more nodes stop helping."""

import pytest

from paralab.benchmarks.scaling import main, table
from paralab.errors import ConfigError, UsageError
from paralab.nodes.simulated_node import bits_per_s
from tests.unit.synthetic_runs import run

MIB = 2**20


@pytest.mark.parametrize(("text", "wanted"), [("8mbit", 8e6), ("1gbit", 1e9), ("2.5gbit", 2.5e9)])
def test_bandwidth(text: str, wanted: float) -> None:
    assert bits_per_s(text) == wanted


@pytest.mark.parametrize("text", ["fast", "10", "10mb", "0mbit"])
def test_what_is_no_bandwidth(text: str) -> None:
    with pytest.raises(UsageError, match="is not a bandwidth"):
        bits_per_s(text)


@pytest.mark.parametrize("words", [("--layout", "dp3"), ("--nproc", "3"), ("--repeat", "1"), ("--group", "mine")])
def test_what_it_chooses_itself_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=f"{words[0]} of paralab scale"):
        main(list(words))


def test_speed_up_formula_and_crossover() -> None:
    # gradients of 1 MiB: a ring of two sends 1 MiB, of three 4/3 MiB; one second of computing
    records = [
        run(nodes, link_mbit_per_s=80.0, world_size=nodes, step_time_p50_s=step_s, comm_dp_sent_bytes=sent * MIB)
        for nodes, step_s, sent in [(1, 1.0, 0), (2, 0.625, 1), (3, 0.5, 4 / 3)]
    ]
    text = table(records, ["80mbit"], 0.5)
    rows = {line.split()[1]: line.split() for line in text.splitlines() if line.strip().startswith("80mbit")}
    assert rows["2"][3:7] == ["625", "ms", f"{500 + MIB / 1e4:.0f}", "ms"]
    assert rows["2"][8:12] == ["1.60x", "80%", "1", "MiB"]
    assert rows["3"][8:12] == ["2.00x", "67%", "1.33", "MiB"]
    assert f"links faster than {2 * MIB * 8 / 1e6:,.0f} Mbit/s" in text
    assert "there is none on this machine" in text
