from collections.abc import Iterator

import pytest

from tests.dist.workers import WorkerPool

# What the cases of a file import beside torch.
IMPORTED = {
    "test_engines.py": ("deepspeed", "accelerate"),
    "test_hugging_face.py": ("transformers.modeling_utils", "transformers.modeling_layers"),
}


@pytest.fixture(scope="session")
def workers(request: pytest.FixtureRequest) -> Iterator[WorkerPool]:
    """Eight processes; a case with fewer uses the first ones."""
    files = {item.path.name for item in request.session.items}
    pool = WorkerPool(8, imported=[name for file in IMPORTED.keys() & files for name in IMPORTED[file]])
    yield pool
    pool.close(kill=True)
