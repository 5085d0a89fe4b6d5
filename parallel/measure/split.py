"""Where the time of a step went on one rank: computing, waiting for data, for the host, or for communication."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

ANY_AXIS = ""  # of waiting whose mesh axis is not known, or is that of all axes together


@dataclass(frozen=True)
class Split:
    """Where the time of one rank went, in seconds.

    data_s: for the next batch. host_s: of a GPU, in which it had nothing to do though there was a batch; None on a CPU,
    where the host computes itself. waits_s: exposed_s by mesh axis, `ANY_AXIS` where that is not known.
    """

    step_s: float
    exposed_s: float
    data_s: float = 0.0
    host_s: float | None = None
    waits_s: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, step_s: float, waits_s: Mapping[str, float], *, data_s: float, idle_s: float | None = None) -> "Split":
        """Return the split of a step. idle_s: of a GPU, in which nothing ran: for want of data, else of the host."""
        exposed_s = sum(waits_s.values())
        if idle_s is None:
            return cls(step_s, exposed_s, data_s, None, waits_s)
        data_s = min(data_s, idle_s)
        return cls(step_s, exposed_s, data_s, idle_s - data_s, waits_s)

    @classmethod
    def sum(cls, splits: Iterable["Split"]) -> "Split":
        """Return the sum of the splits of several steps."""
        splits = list(splits)
        hosts_s = [split.host_s for split in splits if split.host_s is not None]
        axes = dict.fromkeys(axis for split in splits for axis in split.waits_s)
        return cls(
            sum(split.step_s for split in splits),
            sum(split.exposed_s for split in splits),
            sum(split.data_s for split in splits),
            sum(hosts_s) if hosts_s else None,
            {axis: sum(split.waits_s.get(axis, 0.0) for split in splits) for axis in axes},
        )

    @property
    def own_s(self) -> float:
        """Return the time in which this rank did not wait for others."""
        return self.step_s - self.exposed_s

    @property
    def compute_s(self) -> float:
        """Return the time in which it waited for nothing."""
        return self.own_s - self.data_s - (self.host_s or 0.0)

    @property
    def own_parts_s(self) -> dict[str, float]:
        """Return the parts of `own_s`."""
        host = {} if self.host_s is None else {"host": self.host_s}
        return {"compute": self.compute_s, "data": self.data_s, **host}

    def parts_s(self, *, bubble_share: float | None = None) -> dict[str, float]:
        """Return all parts of the step, which add up to it; waiting as `comm_AXIS`, that for a schedule as `bubble`.

        bubble_share: of a pipeline, the idle share that its schedule makes inevitable. That much of the waiting over
        the pipeline axis is the bubble; what is over it, messages and stages that take longer, stays `comm_pp`.
        """
        waits_s, bubble = dict(self.waits_s), {}
        if bubble_share is not None and "pp" in waits_s:
            bubble = {"bubble": min(waits_s["pp"], bubble_share * self.step_s)}
            waits_s["pp"] -= bubble["bubble"]
        return self.own_parts_s | bubble | {f"comm_{axis}" if axis else "comm": s for axis, s in waits_s.items()}
