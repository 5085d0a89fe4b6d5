"""The own module of `paralab peers` has the same losses through paralab, Accelerate and Fabric, on two processes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paralab.benchmarks.peers_table import disagreements
from paralab.benchmarks.variants import OWN_VARIANTS, installed

ROOT = Path(__file__).resolve().parents[2]
# sorted, those of ours come last: they join processes that have met, the others would wait where those have parted
VARIANTS = [variant for variant in OWN_VARIANTS if installed(variant)]


@pytest.fixture(scope="module")
def measured() -> dict[str, list[dict[str, Any]]]:
    """Return what each installed variant measured at the size tiny."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "tests" / "e2e" / "measure_own.py"), *sorted(VARIANTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    lines = [line.removeprefix("found ") for line in done.stdout.splitlines() if line.startswith("found ")]
    assert done.returncode == 0 and lines, done.stderr[-3000:]
    return json.loads(lines[0])


@pytest.mark.parametrize("variant", [name for name, (_, ours) in OWN_VARIANTS.items() if ours])
def test_an_own_module_has_the_losses_of_ours(measured: dict[str, list[dict[str, Any]]], variant: str) -> None:
    if not installed(variant):
        pytest.skip("Lightning Fabric is not installed: pip install lightning-fabric")
    ours = OWN_VARIANTS[variant][1]
    assert ours is not None
    assert disagreements({name: measured[name] for name in (ours, variant)}, "fp32", OWN_VARIANTS) == []
    losses = measured[variant][0]["losses"]
    assert len(losses) == 4 and losses[-1] < losses[0]
