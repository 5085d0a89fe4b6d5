"""Tolerances of parity: by precision, and by whether the model is smooth."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from paralab.axes import eight_bits
from paralab.options.choices import OptimizerName, Precision
from paralab.parity.movement import Measure, by_element, by_projection, by_rms
from paralab.planning.work import Work


@dataclass(frozen=True)
class Tolerance:
    """Largest differences accepted. loss, grad_norm: relative; parameters: of their movement, as in a ParityResult."""

    loss: float
    grad_norm: float
    parameters: float


# fp64, fp32: rounding alone. bf16 and fp16 are compared with the fp32 reference: 8 and 11 bits of mantissa. Seen over
# seeds, layouts, optimizers and sizes: parameters differ by 1e-12 of their movement in fp64, 1e-4 in fp32, and up to
# 0.25 in bf16. One that stays where it was differs by 1, and so does one that moves twice as far.
TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp64": Tolerance(loss=1e-10, grad_norm=1e-10, parameters=1e-6),
    "fp32": Tolerance(loss=1e-5, grad_norm=1e-5, parameters=1e-2),
    "bf16": Tolerance(loss=1e-2, grad_norm=1e-1, parameters=0.5),
    "fp16": Tolerance(loss=2e-3, grad_norm=5e-2, parameters=0.5),
}
# Moments in 8 bits are rounded by the largest number of their block, and pieces of a parameter have other blocks than
# the whole: in the root mean square 0.0002 of the movement was seen where blocks agree, 0.013 where they do not (over
# models, seeds, layouts, and learning rates up to 1e-2); losses differed by 3e-6, gradient norms by 4e-5.
_EIGHT_BITS = Tolerance(loss=2e-5, grad_norm=5e-4, parameters=0.05)
_ROUGH_PARAMETERS = 0.45  # by projection: where ReLUs flip, 0.27 to 1.31 of the reference's movement was seen
# DeepSpeed and Accelerate take the norm by torch, which on a CPU adds squares in fp32 one after another: 5e-4 wrong
# for the 19 million elements of an embedding.
_NORM_OF_OTHERS = 1e-3
# What rounding alone may move, as a share of the largest movement of any element of the model. The first step of Adam
# is g / (|g| + EPS) learning rates: rounding noise of 1e-7 in g makes a hundredth of one. SGD does not enlarge it.
NOISE: Mapping[OptimizerName, float] = {"adamw": 1e-2, "sgd": 1e-6, "adamw8bit": 1e-2}


def tolerance_of(work: Work) -> Tolerance:
    """Return what a work is held to. What cannot be judged exactly is held to that of fp16."""
    precision = work.run.precision
    rough = not work.spec.smooth and precision != "fp64"
    known = TOLERANCES["fp16" if rough and precision == "fp32" else precision]
    if not rough and precision == "fp32" and work.run.optimizer == eight_bits.NAME:
        known = _EIGHT_BITS
    if rough:
        known = replace(known, parameters=_ROUGH_PARAMETERS)
    if work.run.engine != "torch" and precision == "fp32":
        known = replace(known, grad_norm=max(known.grad_norm, _NORM_OF_OTHERS))
    return known


def _rounds_alone(work: Work) -> bool:
    """Return whether the digits of fp32 are all that a layout may change."""
    return work.run.precision == "fp32" and work.run.optimizer != eight_bits.NAME


def measure(work: Work) -> Measure:
    """Return how parameters are compared: by element where rounding is all that differs."""
    if work.run.precision == "fp64" or (_rounds_alone(work) and work.spec.smooth):
        return by_element
    return by_rms if work.spec.smooth else by_projection


def as_judged(work: Work) -> Work:
    """Return a work in the precision its parity is best judged in: fp64 in place of fp32 for a model with kinks.

    A ReLU whose input is within rounding of zero flips with the last bit of fp32. DeepSpeed has no fp64, and AdamW in
    8 bits computes in fp32.
    """
    by_deepspeed = work.run.engine == "deepspeed" or (
        work.run.engine == "accelerate" and (work.run.ds_config is not None or work.layout.zero == 1)
    )
    if work.spec.smooth or work.run.precision != "fp32" or by_deepspeed or work.run.optimizer == eight_bits.NAME:
        return work
    return replace(work, run=replace(work.run, precision="fp64"))
