"""The first line of a command, printed before torch is imported: what will be run, as far as it is known by then."""

import contextlib
import os
from collections.abc import Iterator

from paralab.models import label_of
from paralab.options.config import RunConfig

RANKS = (
    "RANK",
    "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_RANK",
    "PMI_RANK",
    "FLUX_TASK_RANK",
    "PALS_RANKID",
    "JSM_NAMESPACE_RANK",
    "SLURM_PROCID",
)


def show(text: str) -> None:
    """Print the first line, on stdout, where this is rank 0 or was started by no launcher."""
    if is_first_process():
        print(text, flush=True)


def is_first_process() -> bool:
    """Return whether this is rank 0, or started by no launcher. `Rank` reads these in earnest, and needs torch."""
    return next(filter(None, map(os.environ.get, RANKS)), "0").strip() == "0"


@contextlib.contextmanager
def printed_once() -> Iterator[None]:
    """Print to stdout from the first process alone, where a launcher has started several for the same command."""
    if is_first_process():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def model_of(config: RunConfig, *, size: str = "") -> str:
    """Return model and size. size: what stands for one that was not requested."""
    return " ".join(filter(None, [label_of(config.model), config.size or size]))


def division_of(config: RunConfig, *, strategies: str = "") -> str:
    """Return layout or strategy, and the number of processes where it is given, joined by a comma.

    strategies: what stands for one that was not requested.
    """
    processes = config.layout.world_size if config.layout else config.nproc
    counted = f"{processes} process{'es' if processes > 1 else ''}" if processes else ""
    return ", ".join(filter(None, [str(config.layout or config.strategy or strategies), counted]))


def joined(*parts: str) -> str:
    """Return what is known of these, joined by commas."""
    return ", ".join(filter(None, parts))
