"""Write chunks to disk and read them back: torch.distributed.checkpoint, with safetensors as the file format.

DCP decides who writes what (a chunk that several ranks hold is written once), finds which pieces of which files
fill a chunk under another layout, and carries the failure of one rank to all. Its default format describes the
tensors in a pickle, which can run code when it is read. Safetensors files describe themselves, in JSON.
"""

import errno
import json
import math
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from paralab.checkpoint import folder as disk
from paralab.checkpoint.folder import Digest, Facts, Kept
from paralab.console.quantities import size_text
from paralab.engines.state import Chunk, Chunks, Shapes
from paralab.errors import DataError, ParalabError

_HEADERS = 1 << 20  # bytes allowed for names, shapes and JSON when the free space is checked


class Writer(dcp.HuggingFaceStorageWriter):
    """Writes one checkpoint: into `step-N.tmp`, with checksums, renamed when everything is on the disk."""

    def __init__(self, run_folder: Path, *, facts: Facts, kept: Kept) -> None:
        self.unfinished = run_folder / f"step-{facts.step}.tmp"
        super().__init__(path=str(self.unfinished), save_distributed=True)
        self.run_folder, self.facts, self.kept = run_folder, facts, kept

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Copy the chunks, so that training can go on while they are written."""
        return {name: [_copied(chunks[0])] for name, chunks in state_dict.items()}

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make room and check it, on one rank, before any rank writes.

        Raises: DataError when the disk has less free than the checkpoint needs; NewerFormatError as `check_format`.
        """
        self.run_folder.mkdir(parents=True, exist_ok=True)
        disk.check_format(self.unfinished.with_suffix(""))  # one of a newer version would be replaced
        disk.remove_unfinished(self.run_folder)
        needed = _HEADERS + sum(item.tensor_storage_size() or 0 for plan in plans for item in plan.items)
        free = shutil.disk_usage(self.run_folder).free
        if free < needed:
            raise DataError(
                f"a checkpoint needs {size_text(needed)}, {size_text(free)} are free in {self.run_folder}: "
                f"make room there, or save somewhere else"
            )
        self.unfinished.mkdir()
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: dcp.SavePlanner) -> Future[list[WriteResult]]:
        """Write the chunks of this rank. What it returns reaches `finish`: the digest of each file."""
        results = super().write_data(plan, planner).value()
        names = {result.storage_data.relative_path for result in results}
        for name in names:
            _sort_metadata(self.unfinished / name)
        done: Future = Future()
        done.set_result([(name, Digest.of(self.unfinished / name)) for name in sorted(names)])
        return done

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """Complete the checkpoint, on one rank, after all have written."""
        self.facts.save(self.unfinished)
        digests = dict(pair for rank in results for pair in rank)
        disk.write_manifest(self.unfinished, digests | {disk.FACTS: Digest.of(self.unfinished / disk.FACTS)})
        disk.publish(self.unfinished)
        disk.prune(self.run_folder, self.kept)

    def failed(self, error: CheckpointException) -> ParalabError:
        """Clean up; return the error that says why the checkpoint could not be saved."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        intact = disk.latest(self.run_folder)
        last = f"the last good one is {intact.name}" if intact else "there is none yet"
        return DataError(f"checkpoint step-{self.facts.step} was not saved, {last}: {_cause(error)}")


class _SavePlanner(dcp.DefaultSavePlanner):
    """Plans chunks where the default plans tensors."""

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        storage_meta: StorageMeta | None = None,
        is_coordinator: bool = False,
    ) -> None:
        self.state_dict, self.is_coordinator = state_dict, is_coordinator

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_write_item(name, chunk) for name, (chunk,) in self.state_dict.items()])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn][0].data


class _LoadPlanner(dcp.DefaultLoadPlanner):
    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        assert metadata is not None
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        return LoadPlan([item for name, chunks in self.state_dict.items() for item in self._read_items(name, chunks)])

    def _read_items(self, name: str, chunks: list[Chunk]) -> list[ReadItem]:
        """Return what to read to fill the chunks. Raises: DataError unless that is every element."""
        assert self.metadata is not None
        saved = self.metadata.state_dict_metadata.get(name)
        if not isinstance(saved, TensorStorageMetadata):
            raise DataError(f"there is no {name}: the model is another one, ask for the one that was saved")
        if tuple(saved.size) != chunks[0].shape:
            raise DataError(
                f"{name} is {tuple(saved.size)} there and {chunks[0].shape} in the model: "
                f"ask for the model that was saved"
            )
        items = create_read_items_for_chunk_list(name, saved, [chunk.box for chunk in chunks])
        if sum(math.prod(item.lengths) for item in items) != sum(chunk.data.numel() for chunk in chunks):
            raise DataError(f"{name} is not complete: a file is missing, use another checkpoint")
        return items

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn][index.index].data


def save(chunks: Chunks, *, writer: Writer, group: dist.ProcessGroup | None) -> Any:
    """Copy the chunks and write them in the background. Return a future that fails with CheckpointException.

    group: all ranks of the run, on a CPU backend, used for nothing else meanwhile; None for a single process.
    """
    _allow_single_process()
    return dcp.async_save(
        chunks,
        storage_writer=writer,
        planner=_SavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
        process_group=group,
        no_dist=group is None,
    )


def shapes(folder: Path) -> Shapes:
    """Return shape and dtype of the full tensors in the safetensors files of a folder. Raises: DataError."""
    try:
        tensors = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:  # whatever a damaged header leads to
        raise DataError(f"the safetensors files in {folder} cannot be read ({error}): use another one") from error
    return {
        name: (tuple(tensor.size), tensor.properties.dtype)
        for name, tensor in tensors.items()
        if isinstance(tensor, TensorStorageMetadata)
    }


@torch.no_grad()
def load(chunks: Chunks, folder: Path, *, group: dist.ProcessGroup | None) -> None:
    """Fill the chunks, in place, from the safetensors files of a folder. Raises: DataError, on all ranks."""
    _allow_single_process()
    try:
        dcp.load(
            chunks,
            storage_reader=dcp.HuggingFaceStorageReader(str(folder)),
            planner=_LoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=group,
            no_dist=group is None,
        )
    except CheckpointException as error:
        raise DataError(f"{folder} cannot be loaded: {_cause(error)}") from error


def _copied(chunk: Chunk) -> Chunk:
    data = torch.empty(chunk.data.shape, dtype=chunk.data.dtype)  # contiguous, as safetensors wants it
    return Chunk(data.copy_(chunk.data.detach()), chunk.offsets, chunk.shape)


def _sort_metadata(file: Path) -> None:
    """Sort the metadata in the header of a safetensors file, in place: the library writes it in an order of chance.

    A header is JSON after 8 bytes of its length, padded with blanks (safetensors, "Format").
    """
    with file.open("r+b") as content:
        length = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(ordered) == length, f"{file}: a header of {length} bytes became one of {len(ordered)}"
        content.seek(8)
        content.write(ordered)
        content.flush()
        os.fsync(content.fileno())


def _write_item(name: str, chunk: Chunk) -> WriteItem:
    properties = TensorProperties.create_from_tensor(chunk.data)
    data = TensorWriteData(chunk=chunk.box, properties=properties, size=torch.Size(chunk.shape))
    return WriteItem(MetadataIndex(name, chunk.offsets), WriteItemType.SHARD, tensor_data=data)


def _cause(error: CheckpointException) -> str:
    """Return what went wrong on the first rank that failed."""
    rank, (cause, _) = min(error.failures.items())
    if isinstance(cause, ParalabError):
        return str(cause)
    is_full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = ": make room there, and go on with --resume" if is_full else ""
    return f"rank {rank}: {type(cause).__name__}: {cause}{advice}"


def _allow_single_process() -> None:
    """Silence the warning that DCP gives where there is no process group."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
