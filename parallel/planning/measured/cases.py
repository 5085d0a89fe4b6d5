"""Predictions for rows of cases whose device was measured."""

from paralab.axes.costs import GIB
from paralab.errors import LayoutError
from paralab.planning.measured import imagined, step
from paralab.planning.measured.step import Cluster, Predicted
from paralab.planning.predict import Prediction, model_flops
from paralab.planning.settle import Settled

PROCESS_BYTES = 8e7  # of a process that does nothing, beside what it shares with those that were forked with it
# what most of a step goes into, in the words of predictions
_BOUNDS = {"compute": "compute", "update": "memory", "link": "link", "bubble": "bubble"}


def predict(settled: Settled) -> Prediction:
    """Return what is expected of one case; each field is a value.

    Raises: ModelError or LayoutError for what paralab does not train; ValueError for a device that was not measured.
    """
    device = settled.device.measured
    if device is None:
        raise ValueError(f"{settled.device.gpu} was not measured")
    plan = imagined.of_case(settled)
    found = step.predict(plan, device, cluster_of(settled))
    case, peak = settled.case, settled.device.peak_tflops(str(settled.case.precision))
    if peak is None:
        raise LayoutError(f"precision {case.precision} was not measured")
    return Prediction(
        step_time_s=found.step_time_s,
        mfu=float(model_flops(case)) / found.step_time_s / case.n_gpus / (peak * 1e12),
        memory_gib=found.memory.total / GIB,
        fits=fits(found, settled),
        bound=_BOUNDS[found.bound],
    )


def cluster_of(settled: Settled) -> Cluster:
    """Return the machines that a case names: one, unless it has fewer processes to a node than in all."""
    return Cluster(int(settled.case.gpus_per_node), float(settled.inter_gbit_per_s))


def fits(found: Predicted, settled: Settled) -> bool:
    """Return whether all processes of a machine fit into its memory, or one into that of its GPU."""
    device, case = settled.device, settled.case
    together = device.measured is not None and device.measured.kind == "cpu"
    processes = min(case.n_gpus, case.gpus_per_node) if together else 1
    return bool(processes * (found.memory.total + PROCESS_BYTES) <= device.memory_gib * GIB)
