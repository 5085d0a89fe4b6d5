"""What torch.compile has done in this process: time, graph breaks and recompilations."""

from dataclasses import dataclass

_MOST_COMPILATIONS = 100_000  # that torch keeps in mind


@dataclass(frozen=True)
class Compiled:
    """seconds: spent compiling. graph_breaks: places at which a graph ended early, for each time it was compiled.

    recompiles: compilations of code that had been compiled before, for other shapes, types or values.
    """

    seconds: float = 0.0
    graph_breaks: int = 0
    recompiles: int = 0

    def since(self, before: "Compiled") -> "Compiled":
        """Return what came after an earlier look."""
        return Compiled(
            self.seconds - before.seconds,
            self.graph_breaks - before.graph_breaks,
            self.recompiles - before.recompiles,
        )


def compiled(mode: str) -> Compiled:
    """Return what has been compiled so far; nothing where the mode is "none", for torch's compiler is not loaded then.

    Recompilations count from the first call on.
    """
    if mode == "none":
        return Compiled()
    from torch._dynamo import utils

    utils.set_compilation_metrics_limit(_MOST_COMPILATIONS)
    again = sum(metrics.recompile_reason is not None for metrics in utils.get_compilation_metrics())
    breaks = sum(utils.counters["graph_break"].values())
    return Compiled(utils.calculate_time_spent()["total_wall_time"], breaks, again)
