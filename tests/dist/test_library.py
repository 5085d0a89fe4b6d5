"""A module of a program's own computes under every layout what one process does: the proof, and a loop by hand."""

import pytest

from tests.dist.own_modules import KINDS
from tests.dist.workers import WorkerPool


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_module_holds_under_every_layout(workers: WorkerPool, name: str) -> None:
    layouts = KINDS[name].layouts
    for layout, found in zip(layouts, workers.run("tests.dist.library_cases:holds", name, layouts, {})[0], strict=True):
        assert found["passed"], f"{layout}: {found['proof']}"
        assert found["kept"], f"{layout}: values are not those that the module came with"
        assert found["loss"] < 1e-10 and found["values"] < 1e-10, f"{layout}: {found}"
