"""What the memory of the fullest device goes into, by category. Values or arrays (cases,)."""

import numpy as np

from paralab.axes.case import Case, Values
from paralab.axes.costs import GIB, Constants, Machine, Plan
from paralab.planning import memory
from paralab.planning.constants import shipped

CATEGORIES = ("states", "activations", "at work", "overhead")


def gib_by_category(case: Case, machine: Machine, constants: Constants | None = None) -> dict[str, Values]:
    """Return the GiB of each of `CATEGORIES` on the device that is fullest, each a value or an array (cases,).

    states: parameters, gradients and optimizer states. activations: kept for backward. at work: logits or the layer
    that runs, what is gathered, and buffers. overhead: fragmentation, context and communicators.
    """
    plan = Plan(case, machine, constants or shipped())
    ranks = memory.by_rank(plan)
    totals = np.stack(np.broadcast_arrays(*(sum(rank.values()) for rank in ranks)))
    fullest = np.argmax(totals, axis=0)
    found = {
        name: np.choose(fullest, np.stack(np.broadcast_arrays(*(rank[name] for rank in ranks), fullest))[:3])
        for name in CATEGORIES[:3]
    }
    allocated = sum(found.values())
    found["overhead"] = memory.device_bytes(plan, allocated) - allocated
    every = np.broadcast_arrays(*found.values())
    return {name: size / GIB for name, size in zip(found, every, strict=True)}
