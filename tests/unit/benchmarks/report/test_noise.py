"""How the spread of a case grows with its step time, where that is known."""

from pathlib import Path

import numpy as np
import pytest

from paralab.benchmarks.report.noise import main, powers
from tests.unit.synthetic_runs import runs

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize(("share", "seconds", "power"), [(0.05, 0.0, 1.0), (0.0, 0.01, 0.0)])
def test_the_power_is_that_of_the_noise(share: float, seconds: float, power: float) -> None:
    rng, rows = np.random.default_rng(0), []
    for case in range(16):
        step_s = 0.1 * 1.2**case
        times = step_s * (1 + share * rng.standard_normal(30)) + seconds * rng.standard_normal(30)
        rows += runs(times.tolist(), first=100 * case, layout=f"dp{case}", group="g")
    ((group, medians_s, found),) = powers(rows)
    assert (group, len(medians_s)) == ("g", 16) and found == pytest.approx(power, abs=0.15)


def test_the_figures_of_the_published_sweeps(capsys: pytest.CaptureFixture[str]) -> None:
    main([str(ROOT / "benchmarks" / "results" / f"{name}.csv") for name in ("dit", "gpt2", "points", "resnet")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["1.37", "1.69", "1.04", "1.12"]
