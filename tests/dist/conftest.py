from collections.abc import Iterator

import pytest

from tests.dist.workers import WorkerPool


@pytest.fixture(scope="session")
def workers() -> Iterator[WorkerPool]:
    """Eight processes; a case with fewer uses the first ones."""
    pool = WorkerPool(8)
    yield pool
    pool.close(kill=True)
