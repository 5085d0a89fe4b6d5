"""When a rank began to communicate, and when it waited for that. Imports no torch."""

from typing import NamedTuple


class Call(NamedTuple):
    """A collective or a message that began at a moment of the monotonic clock."""

    axis: str
    op: str
    ranks: int
    payload_bytes: int
    start_s: float


class Wait(NamedTuple):
    """A time in which the thread that runs the step waited, on the monotonic clock."""

    axis: str
    start_s: float
    end_s: float
