"""Settings of all tests."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Time limits would fail on a machine that has other work to do.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Tests start up to eight processes, which would crowd each other out with several threads each. Set before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Of --quick: no ranks, and together under a minute. What finds most mistakes per second.
QUICK = (
    "compare config cross_entropy data_images data_order data_text deepspeed_files diffusion document goodput gpt2 "
    "house layout measure_forms measure_steady meeting model_rules named oom_killer phases record resnet resolve "
    "stats untrusted"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only the quick tests of tests/unit (tests/README.md)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out, of --quick, every file of tests that is not in the list."""
    if not config.option.quick or not collection_path.name.startswith("test_"):
        return None
    quick = {f"test_{name}.py" for name in QUICK.split()}
    return None if collection_path.parent.name == "unit" and collection_path.name in quick else True


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
