"""The batches of a run, as each data rank of its mesh sees them."""

from collections.abc import Iterator

from paralab.data import batches
from paralab.data.dataset import Batch
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh


def training_batches(work: Work, mesh: Mesh, *, start_step: int = 0) -> Iterator[Batch]:
    """Yield this rank's batches, step by step."""
    run = work.run
    return batches(
        work.dataset(),
        seed=run.seed,
        division=work.division,
        dp_rank=mesh.rank("dp"),
        start_step=start_step,
        workers=run.loader_workers,
        device=mesh.device,
        cast_on_device=run.cast_on_device,
        **work.copies(mesh.device),
    )
