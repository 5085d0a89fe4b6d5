"""Settings of all tests."""

import os

import pytest
from hypothesis import HealthCheck, settings

# Time limits would fail on a machine that has other work to do.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Tests start up to eight processes, which would crowd each other out with several threads each. Set before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those marked `gpu`, run by `-m gpu`: they are about processes on a CPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
