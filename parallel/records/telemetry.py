"""The columns of telemetry: what all ranks of a run used of processors, GPUs and energy, in one row."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from paralab.measure.telemetry import Telemetry


def telemetry_columns(seen: Sequence[Telemetry], *, nodes: int, tokens: int | None) -> dict[str, Any]:
    """Means over ranks of means, maxima over ranks of maxima, energies summed over devices. What none knows is None.

    The ranks of a node share its cores: what they use of them adds up, and its maximum is at most the sum of theirs.
    Energy of processors is known for one node alone: each rank sees all sockets of its own.

    seen: of each rank. tokens: that all of them trained on meanwhile, of a model of texts.
    """

    def over(name: str, combine: Callable[[list[Any]], Any]) -> Any:
        values = [value for t in seen if (value := getattr(t, name)) is not None]
        return combine(values) if values else None

    columns = {}
    for kind, unit in (("utilisation", "share"), ("power", "w"), ("clock", "mhz"), ("temperature", "c")):
        columns[f"gpu_{kind}_mean_{unit}"] = over(f"gpu_{kind}_mean_{unit}", statistics.mean)
        columns[f"gpu_{kind}_max_{unit}"] = over(f"gpu_{kind}_max_{unit}", max)
    reasons = over(
        "gpu_throttle_reasons", lambda texts: "; ".join(sorted({x for t in texts for x in t.split("; ") if x}))
    )
    gpu_energy, cpu_energy = over("gpu_energy_j", sum), over("cpu_energy_j", max) if nodes == 1 else None
    energy = gpu_energy if gpu_energy is not None else cpu_energy
    return columns | {
        "gpu_used_mean_bytes": over("gpu_used_mean_bytes", lambda values: int(statistics.mean(values))),
        "gpu_used_max_bytes": over("gpu_used_max_bytes", max),
        "gpu_throttle_reasons": reasons,
        "throttled": bool(reasons) if reasons is not None else None,
        "energy_j": energy,
        "energy_per_token_j": energy / tokens if energy is not None and tokens else None,
        "energy_source": "nvml" if gpu_energy is not None else "rapl" if cpu_energy is not None else None,
        "cpu_utilisation_mean_share": over("cpu_utilisation_mean_share", lambda shares: sum(shares) / nodes),
        "cpu_utilisation_max_share": over("cpu_utilisation_max_share", lambda shares: sum(shares) / nodes),
    }


def largest_known(values: Iterable[int | None]) -> int | None:
    """Return the largest of the values that are known, None without any."""
    return max((value for value in values if value is not None), default=None)
