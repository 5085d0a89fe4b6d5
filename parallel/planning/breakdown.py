"""What the memory of the fullest device goes into, by category. Values or arrays (cases,)."""

import numpy as np

from paralab.axes.costs import GIB, Case, Constants, Machine, Plan, Values
from paralab.axes.data.cost import Weights, buffer_bytes, gathered_bytes, state_bytes
from paralab.axes.pipeline.cost import is_v_shaped
from paralab.axes.weights import local_dense, local_embedding, local_experts, local_output
from paralab.planning import memory
from paralab.planning.constants import shipped

CATEGORIES = ("states", "activations", "at work", "overhead")


def gib_by_category(case: Case, machine: Machine, constants: Constants | None = None) -> dict[str, Values]:
    """Return the GiB of each of `CATEGORIES` on the device that is fullest, each a value or an array (cases,).

    states: parameters, gradients and optimizer states. activations: kept for backward. at work: logits or the layer
    that runs, what is gathered, and buffers. overhead: fragmentation, context and communicators.
    """
    plan = Plan(case, machine, constants or shipped())
    ranks = [_rank(plan, *rank) for rank in _ranks(plan)]
    totals = np.stack(np.broadcast_arrays(*(sum(rank.values()) for rank in ranks)))
    fullest = np.argmax(totals, axis=0)
    found = {
        name: np.choose(fullest, np.stack(np.broadcast_arrays(*(rank[name] for rank in ranks), fullest))[:3])
        for name in CATEGORIES[:3]
    }
    allocated = sum(found.values())
    found["overhead"] = _device(plan, allocated) - allocated
    every = np.broadcast_arrays(*found.values())
    return {name: size / GIB for name, size in zip(found, every, strict=True)}


def _device(plan: Plan, allocated: Values) -> Values:
    return memory.device_bytes(plan, allocated)


def _ranks(plan: Plan) -> list[tuple[str, Values, Values, Values, Values]]:
    """Return (name, whether it is there, its number, weights of the ends, bytes of logits) of three pipeline ranks."""
    case = plan.case
    output = local_output(case)
    first = local_embedding(case) + np.where(case.pp == 1, output, 0)
    both, loss = is_v_shaped(case) | (case.pp == 1), memory.logit_bytes(plan)
    return [
        ("first", 1.0, 0, first, np.where(both, loss, 0.0)),
        ("held", np.where(case.pp > 2, 1.0, 0.0), case.held_rank, 0.0, 0.0),
        ("last", np.where(case.pp > 1, 1.0, 0.0), case.pp - 1, output, np.where(both, 0.0, loss)),
    ]


def _rank(plan: Plan, name: str, there: Values, rank: Values, ends: Values, loss: Values) -> dict[str, Values]:
    case = plan.case
    layer, layers = local_dense(case) + local_experts(case), case.held("weights", name)
    at_work = np.maximum(loss, memory.working_bytes(plan)) + gathered_bytes(plan, layer, ends, layers)
    return {
        "states": state_bytes(plan, Weights(layers * local_dense(case) + ends, layers * local_experts(case))) * there,
        "activations": memory.rank_kept_bytes(plan, name, rank) * there,
        "at work": (at_work + buffer_bytes(plan)) * there,
    }
