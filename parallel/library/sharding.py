"""The rows of a global batch: how they divide, and whether all ranks read the same ones."""

import zlib

import torch
import torch.distributed as dist

from paralab.data.dataset import Batch
from paralab.errors import DataError
from paralab.layout import Division, Layout
from paralab.processes.mesh import Mesh


def agreed(batch: Batch | None, count: int, mesh: Mesh) -> bool:
    """Return whether there is a batch, on every rank the same. Collective.

    batch: of this rank, its tensors (rows, ...); None where it has ended. count: of batches before it.
    Raises: DataError where ranks have different batches, or one has ended before another.
    """
    if mesh.world is None:
        return batch is not None
    mine = torch.tensor([-1 if batch is None else len(batch), 0 if batch is None else _mark(batch)])
    every = mine.new_empty(mesh.layout.world_size * 2)
    device = mesh.device if dist.get_backend(mesh.world) == "nccl" else torch.device("cpu")
    every = every.to(device)
    dist.all_gather_single(every, mine.to(device), group=mesh.world)
    rows = every.view(-1, 2).tolist()
    ended = [rank for rank, (n, _) in enumerate(rows) if n < 0]
    if len(ended) == len(rows):
        return False
    if ended:
        going = next(rank for rank, (n, _) in enumerate(rows) if n >= 0)
        raise DataError(
            f"the batches end after {count} on rank {ended[0]} and go on on rank {going}: shard() needs the same "
            "batches on every rank; pass rows that are each rank's own to step()"
        )
    if len({tuple(row) for row in rows}) > 1:
        raise DataError(
            f"batch {count} is another one on rank {next(i for i, row in enumerate(rows) if row != rows[0])} than "
            "on rank 0: shard() and prove() need the same batches on every rank; set "
            "torch.manual_seed(0) before they are drawn, give the loader "
            "generator=torch.Generator().manual_seed(0), or pass rows that are each rank's own to step()"
        )
    return True


def _mark(batch: Batch) -> int:
    """Return a checksum of the first and the last bytes of a batch: enough to tell batches apart."""
    mark = 0
    for x in (*batch.inputs, batch.targets, *batch.more):
        for row in (x[0], x[-1]):
            flat = row.detach().reshape(-1)[:256].cpu()
            mark = zlib.crc32(flat.contiguous().view(torch.uint8).numpy().tobytes(), mark)
    return mark


def division_of(layout: Layout, rows: int, accumulation: int) -> Division:
    parts = layout.dp * layout.micro_batches * accumulation
    if rows % parts or not rows:
        sizes = " or ".join(str(n) for n in (rows // parts * parts, (rows // parts + 1) * parts) if n)
        raise DataError(
            f"a batch of {rows} rows does not divide by dp {layout.dp} x micro-batches {layout.micro_batches} x "
            f"accumulation {accumulation} = {parts}: use batches of {sizes} rows, and drop_last=True for the last one"
        )
    return layout.divide(rows, accumulation)
