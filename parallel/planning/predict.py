"""Predicted step time, utilisation and memory of cases."""

from collections.abc import Sequence
from dataclasses import dataclass

from paralab.axes.case import Case, CountedCase, Values
from paralab.axes.costs import GIB, Constants, Machine, Plan
from paralab.axes.weights import active_weights
from paralab.planning import memory, steptime
from paralab.planning.constants import shipped
from paralab.planning.settle import Settled, arrays


@dataclass(frozen=True)
class Prediction:
    """What is expected of cases, each an array (cases,) or a value.

    step_time_s: of one optimizer step, also where it does not fit. mfu: of the dense peak of the datasheet.
    memory_gib: of the fullest device. fits: whether that is there. bound: what most of the time goes into: host,
    compute, memory (its bandwidth), link or bubble.
    """

    step_time_s: Values
    mfu: Values
    memory_gib: Values
    fits: Values
    bound: Values


def predict(settled: Sequence[Settled], constants: Constants | None = None) -> Prediction:
    """Return predictions, each an array (cases,). constants: those that are shipped by default.

    Raises: UsageError for a case of a measured device that paralab does not train.
    """
    found = evaluate(*arrays(list(settled)), constants)
    if not any(one.device.measured for one in settled):
        return found
    from paralab.planning.measured import cases

    for i, one in enumerate(settled):
        if one.device.measured is not None:
            for name, value in vars(cases.predict(one)).items():
                getattr(found, name)[i] = value
    return found


def evaluate(case: Case, machine: Machine, constants: Constants | None = None) -> Prediction:
    """Return the same for cases and machines whose fields are values or arrays (cases,)."""
    k = constants or shipped()
    plan = Plan(case, machine, k)
    step = steptime.step(plan)
    seconds = step.total_s
    used = memory.peak_bytes(plan)
    fits = memory.safe_bytes(plan) <= machine.memory_bytes
    return Prediction(seconds, _mfu(case, machine, seconds), used / GIB, fits, steptime.bound(plan, step))


def _mfu(case: Case, machine: Machine, seconds: Values) -> Values:
    """Return model FLOPs over what the devices could do at their peak in that time."""
    return model_flops(case) / seconds / case.n_gpus / machine.peak_flops


def model_flops(case: Case) -> Values:
    """Return the FLOPs of a step: 6 for each weight in use and 12 LHS for attention, a token (docs/planner.md).

    Of a model that was counted, three times those of its forward pass.
    """
    if isinstance(case, CountedCase):
        return 3 * case.global_batch_size * (case.layers * case.block_flops + case.first_flops + case.last_flops)
    tokens = case.global_batch_size * case.sequence_length
    return tokens * (6 * active_weights(case) + 12.0 * case.layers * case.hidden * case.sequence_length)


def hidden_share(case: Case) -> float:
    """Return the share of the FLOPs of `model_flops` that a causal mask hides: half of attention's."""
    if isinstance(case, CountedCase):
        return 0.0
    attention = 12.0 * case.layers * case.hidden * case.sequence_length
    return float(attention / 2 / (6 * active_weights(case) + attention))
