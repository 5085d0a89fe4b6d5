"""Waiting for gloo's threads, for tests of what memory is held at rest."""

import time

import torch.distributed as dist

_JOBS, _EACH_S = 10, 0.02  # more than gloo has threads


def let_go() -> None:
    """Wait until gloo's threads have let go of what they sent, which each does on the way to its next job."""
    for _ in range(_JOBS):
        dist.barrier()
        time.sleep(_EACH_S)
