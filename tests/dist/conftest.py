from collections.abc import Iterator

import pytest

from tests.dist.workers import WorkerPool

# What the cases of a file import beside torch.
IMPORTED = {
    "test_engines.py": ("deepspeed", "accelerate"),
    "test_hugging_face.py": ("transformers.modeling_utils", "transformers.modeling_layers"),
}


def pytest_collection_finish(session: pytest.Session) -> None:
    files = {item.path.name for item in session.items}
    WorkerPool.imported += tuple(name for file in IMPORTED.keys() & files for name in IMPORTED[file])


@pytest.fixture(scope="session")
def workers() -> Iterator[WorkerPool]:
    """Eight processes; a case with fewer uses the first ones."""
    pool = WorkerPool(8)
    yield pool
    pool.close(kill=True)
