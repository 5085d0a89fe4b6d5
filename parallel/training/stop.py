"""Ending in order when a signal asks for it, after the same step on every rank."""

import signal
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from paralab.processes.mesh import Mesh


class Stop:
    """Notices SIGTERM and SIGINT, and has all ranks agree on the step after which to end.

    The signal may reach ranks at different steps, and one of them only. Each step they add up what they have seen,
    on a group of its own on the CPU; the answer of one step is read after the next, so nobody waits for it.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, mesh: Mesh) -> None:
        self.seen = 0
        self.group = None
        if mesh.world is not None:
            self.group = dist.new_group(list(range(mesh.layout.world_size)), backend="gloo")
        self.asked: tuple[Tensor, dist.Work] | None = None

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self._notice) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.asked is not None and kind is None:
            self.asked[1].wait()

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.seen = number

    def agreed(self) -> int | None:
        """Return the signal after which all ranks end now, or None. Collective, once a step."""
        if self.group is None:
            return self.seen or None
        answer = None
        if self.asked is not None:
            numbers, work = self.asked
            work.wait()
            answer = int(numbers) or None
        numbers = torch.tensor(self.seen)
        self.asked = numbers, dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self.group, async_op=True)
        return answer
