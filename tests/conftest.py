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
    "axes/forms benchmarks/compare benchmarks/stats console/phases data/images data/order data/text document "
    "engines/deepspeed_files house layout/layout layout/named measure/steady models/cross_entropy "
    "models/diffusion models/gpt2 models/resnet options/config parity/model_rules planning/resolve processes/meeting "
    "processes/oom_killer records/record training/goodput untrusted"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only the quick tests of tests/unit (tests/README.md)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out, of --quick, every file of tests that is not in the list."""
    if not config.option.quick or not collection_path.name.startswith("test_"):
        return None
    unit = config.rootpath / "tests" / "unit"
    quick = {unit / Path(name).with_name(f"test_{Path(name).name}.py") for name in QUICK.split()}
    return None if collection_path in quick else True


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
