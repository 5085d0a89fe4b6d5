"""Settings of all tests."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Time limits would fail on a machine that has other work to do, and a test that is red now and then says nothing of a
# change. `--hypothesis-profile explore` tries other examples each time.
_UNTIMED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeated", derandomize=True, **_UNTIMED)
settings.register_profile("explore", derandomize=False, **_UNTIMED)
settings.load_profile("repeated")

# Tests start up to eight processes, which would crowd each other out with several threads each; and where a command has
# several all the same, one that waits for another leaves it the core instead of spinning on it. Set before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Of --quick: no ranks, and together under a minute. What finds most mistakes per second.
QUICK = (
    "axes/forms benchmarks/report/stats console/phases data/images data/order data/text document "
    "engines/deepspeed_files house layout/layout layout/named measure/steady models/cross_entropy "
    "models/diffusion models/gpt2 models/resnet options/config planning/resolve processes/meeting "
    "processes/oom_killer records/record training/goodput untrusted"
)

# Of lanes: the order of the folders. Tests of dist stay in one lane, since they share workers, and so do those files of
# e2e that share network namespaces, control groups and what the kernel counts. Any other file goes to a lane that is
# free.
LANES = ("e2e", "unit", "dist", "gpu")
TOGETHER = ("test_elastic.py", "test_failures.py", "test_faults.py", "test_simulated_cluster.py")


# Of a function with more cases than the first number the suite runs one of so many; --every-case runs them all.
FEWER = {"dist": (3, 4), "e2e": (3, 3)}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-case", action="store_true", help="all cases, and tests marked long (tests/README.md)")
    parser.addoption("--quick", action="store_true", help="only the quick tests of tests/unit (tests/README.md)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out, of --quick, every file of tests that is not in the list."""
    if not config.option.quick or not collection_path.name.startswith("test_"):
        return None
    unit = config.rootpath / "tests" / "unit"
    quick = {unit / Path(name).with_name(f"test_{Path(name).name}.py") for name in QUICK.split()}
    return None if collection_path in quick else True


def folder_of(nodeid: str) -> str:
    """The folder of tests/ that a test is in, from its name below the root: "tests/e2e/test_run.py::test_x"."""
    return nodeid.partition("tests/")[2].partition("/")[0]


def lane_of(nodeid: str) -> str:
    """What stays in one lane with this test: its file, or its whole folder, of which TOGETHER names a part for e2e."""
    file, folder = nodeid.partition("::")[0], folder_of(nodeid)
    alone = folder == "unit" or (folder == "e2e" and Path(file).name not in TOGETHER)
    return file if alone else folder


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Share the tests between lanes by `lane_of`: xdist_group marks say nothing to pytest 9.2 (xdist 3.8)."""
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return lane_of(nodeid)

    config.option.loadscopereorder = False
    return Lanes(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out cases of long tables and long tests; in lanes, whole commands come first and tests/dist last."""
    if not config.option.every_case and not any("::" in arg for arg in config.args):
        _thin(config, items)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (LANES.index(folder_of(item.nodeid)), lane_of(item.nodeid) not in LANES))


def _thin(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect long tests, and of the long tables all but one of FEWER cases and those marked `always`.

    The offset changes from row to row of the six models.
    """
    cases: dict[str, list[pytest.Item]] = {}
    left_out = {item for item in items if item.get_closest_marker("long")}
    for item in items:
        name, _, case = item.nodeid.partition("[")
        if case and folder_of(name) in FEWER:
            cases.setdefault(name, []).append(item)
    for name, of in cases.items():
        many, one_of = FEWER[folder_of(name)]
        if len(of) > many:
            left_out |= {item for i, item in enumerate(of) if (i + i // 6) % one_of and not _is_kept(item)}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """Look through all objects for garbage less often: with what tests import, it was a tenth of their time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 100)


def _is_kept(item: pytest.Item) -> bool:
    return item.get_closest_marker("always") is not None


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
