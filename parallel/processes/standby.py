"""Processes that wait because the layout does not need them: their number does not always divide the batch."""

import os
from datetime import timedelta

import torch.distributed as dist

_FINISHED = "paralab/finished"


def stand_by() -> None:
    """Wait until the others have finished; the launcher ends this process when it starts all anew."""
    _launcher_store().wait([_FINISHED], timedelta(days=365))


def release() -> None:
    """Tell the processes that stand by that the others have finished."""
    _launcher_store().set(_FINISHED, "")


def _launcher_store() -> dist.TCPStore:
    """Connect to the store that the launcher opened for the processes of this start."""
    return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
