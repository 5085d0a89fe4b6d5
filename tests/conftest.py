"""Settings of all tests."""

import os
import sys
from collections.abc import Iterator

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


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several threads, by far where the cores are busy; a command sets its own."""

    def reset() -> None:
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)

    reset()
    yield
    reset()
