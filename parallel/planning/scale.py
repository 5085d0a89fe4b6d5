"""The arithmetic of a whole training: tokens, FLOPs, days, money, and the bytes that weights and ZeRO take.

Every quantity is a `Fact`, which names where its formula comes from.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from paralab.axes.case import CountedCase
from paralab.axes.costs import Plan
from paralab.axes.data.cost import Weights, bytes_per_weight, state_bytes
from paralab.axes.weights import active_weights, all_weights
from paralab.planning.constants import shipped
from paralab.planning.predict import model_flops
from paralab.planning.search import Found

OPTIMAL_TOKENS = 20  # a weight: Hoffmann et al. 2022, table 3
COURSE_BYTES = 20  # of a weight, states in 16 bits beside fp32: 2 + 2, and 4 + 4 + 4 + 4
DAY_S = 86400
HOFFMANN = "Hoffmann et al. 2022"
KAPLAN = "Kaplan et al. 2020"
BROWN = "Brown et al. 2020, D"
RAJBHANDARI = "Rajbhandari et al. 2020, figure 1"
PLAYBOOK = "Tazi et al. 2025, Ultra-Scale Playbook"
PREDICTED = "predicted step time"
ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Fact:
    """A quantity of a training. name, unit: in words. source: where its formula or its number comes from."""

    name: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Training:
    """How long a training is. tokens: of texts; samples of what is not text. source: how they were found.

    dollars_per_hour: of one device; None where no price is known.
    """

    tokens: float
    source: str
    dollars_per_hour: float | None = None


def unit(found: Found) -> str:
    """Return what throughput counts."""
    case = found.settled.case
    return case.unit if isinstance(case, CountedCase) else "tokens"


def units_per_step(found: Found) -> float:
    """Return the tokens of a step, samples of what is not text."""
    case = found.settled.case
    each = case.units_per_sample if isinstance(case, CountedCase) else case.sequence_length
    return float(case.global_batch_size * each)


def n_weights(found: Found) -> float:
    """Return the weights of the model; of a mixture all of its experts."""
    return float(all_weights(found.settled.case))


def cost(found: Found, i: int, training: Training) -> Iterator[Fact]:
    """Yield what a training takes under one layout: FLOPs, steps, days, device-hours and money."""
    case = found.settled.case
    steps = training.tokens / units_per_step(found)
    days = steps * float(found.prediction.step_time_s[i]) / DAY_S
    hours = days * 24 * case.n_gpus
    yield Fact(unit(found), training.tokens, "", training.source)
    if unit(found) == "tokens":
        yield Fact("tokens a weight", training.tokens / n_weights(found), "", "tokens / weights")
        yield Fact("compute-optimal tokens", OPTIMAL_TOKENS * n_weights(found), "", f"20 a weight: {HOFFMANN}")
    if isinstance(case, CountedCase):
        flops, source = steps * float(model_flops(case)), "3 x forward, counted"
    else:
        flops, source = 6 * float(active_weights(case)) * training.tokens, f"6 a weight, token: {KAPLAN}"
    yield Fact("FLOPs", flops, "", source)
    yield Fact("petaFLOP/s-days", flops / 1e15 / DAY_S, "", f"1e15 x 86,400: {BROWN}")
    yield Fact("optimizer steps", steps, "", f"{unit(found)} / {unit(found)} of a step")
    yield Fact("days", days, "", f"steps x {PREDICTED}")
    yield Fact("device-hours", hours, "", "days x 24 x devices")
    if training.dollars_per_hour is not None:
        yield Fact("dollars", hours * training.dollars_per_hour, "", "device-hours x price of one")


def state_bytes_of_a_weight(found: Found) -> Iterator[Fact]:
    """Yield the bytes of a weight by category, undivided: as they are predicted here, and as courses have it."""
    ours = bytes_per_weight(found.settled.case)
    for name, value in ours.items():
        yield Fact(name, float(value), "bytes", "predicted")
    yield Fact("all", float(sum(ours.values())), "bytes", "predicted")
    yield Fact("all, in courses", COURSE_BYTES, "bytes", PLAYBOOK)


def zero_factors(found: Found) -> Iterator[Fact]:
    """Yield how many times less the states take under each stage of ZeRO, over all devices as data ranks.

    First the limit in its paper, of 16 bytes a weight, then what is predicted here, where gradients may take 4
    bytes and not 2 as long as they are not divided.
    """
    case = found.settled.case
    n = int(case.n_gpus)
    case = case.but(dp=n, tp=1, pp=1, cp=1, ep=1, shard=0, zero=np.arange(4.0))
    ours = state_bytes(Plan(case, found.machine, shipped()), Weights(np.ones(4)))
    for stage, limit in ((1, 4), (2, 8), (3, n)):
        yield Fact(f"ZeRO-{stage}, limit", limit, "times", RAJBHANDARI)
        of = f"predicted: {ours[0]:.3g} to {ours[stage]:.3g} bytes"
        yield Fact(f"ZeRO-{stage}, {n:,} devices", float(ours[0] / ours[stage]), "times", of)


def weight_sizes(found: Found) -> Iterator[Fact]:
    """Yield the GiB of the weights alone, in several precisions."""
    for name, size in ELEMENT_BYTES.items():
        yield Fact(f"weights in {name}", n_weights(found) * size / 2**30, "GiB", f"{size} byte{'s' * (size > 1)} each")


def facts(found: Found, i: int, training: Training) -> dict[str, list[Fact]]:
    """Return all quantities of a training under one layout, in groups by title."""
    return {
        "The training": list(cost(found, i, training)),
        "Bytes of a weight": list(state_bytes_of_a_weight(found)),
        "What ZeRO divides states by": list(zero_factors(found)),
        "The weights alone": list(weight_sizes(found)),
    }
