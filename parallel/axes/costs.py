"""What a training costs, as the axes and the planner speak of it: the machine, a plan, and seconds of a pass.

Every figure is a number, or a numpy array with one value for each of many cases: the formulas are written once and work
on both, so that a search can ask for thousands of layouts at once. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from paralab.axes.case import Case, Values

GIB = 2.0**30
LATER = ("Hopper", "Blackwell", "CDNA3")  # devices that came after 2021 in nodes with hosts of their time


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device of a case and its links, each a value or an array (cases,).

    peak_flops: of dense matrix products in the precision of the case, half_flops: in 16 bits, both per second.
    watts_ratio: watts for a FLOP, of the device that stands for its generation. intra_bytes_per_s, inter_bytes_per_s:
    of the links of one GPU inside a node and between nodes, in one direction; host_bytes_per_s: of that to the host.
    """

    peak_flops: Values
    half_flops: Values
    arch: Values
    watts_ratio: Values
    memory_bytes: Values
    memory_bytes_per_s: Values
    intra_bytes_per_s: Values
    inter_bytes_per_s: Values
    host_bytes_per_s: Values


class Constants:
    """The constants of the planner, by name: `constants.attribute`."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = dict(values)

    def __getattr__(self, name: str) -> float:
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(f"there is no constant {name!r}") from None

    def but(self, values: Mapping[str, Values]) -> "Constants":
        """Return the same constants with other values."""
        return Constants({**self._values, **values})


@dataclass(frozen=True)
class Pass:
    """Seconds of the forward and of the backward pass of something, each a value or an array (cases,)."""

    forward_s: Values = 0.0
    backward_s: Values = 0.0

    def __add__(self, other: "Pass") -> "Pass":
        return Pass(self.forward_s + other.forward_s, self.backward_s + other.backward_s)

    @property
    def both_s(self) -> Values:
        return self.forward_s + self.backward_s

    def times(self, factor: Values) -> "Pass":
        """Return the same for so many of them."""
        return Pass(self.forward_s * factor, self.backward_s * factor)

    def again(self, share: Values) -> "Pass":
        """Return the same where backward first repeats a share of the forward pass."""
        return Pass(self.forward_s, self.backward_s + share * self.forward_s)


@dataclass(frozen=True)
class Plan:
    """All that an axis is asked with: one case or many, their machine, and the constants."""

    case: Case
    machine: Machine
    constants: Constants

    def of_rank(self, rank: str) -> "Plan":
        """Return the plan of the layers of a pipeline rank: first, middle, last or held."""
        return self.of(self.case.of_rank(rank))

    def of_largest_layer(self) -> "Plan":
        """Return the plan of a layer with experts, where some of these have them and others not."""
        return self.of(self.case.with_mixture(np.where(self.case.mixture_share > 0, 1.0, 0.0)))

    def of(self, case: Case) -> "Plan":
        """Return the plan of another case; this one where it is its own."""
        return self if case is self.case else Plan(case, self.machine, self.constants)

    @property
    def is_of_2021(self) -> Values:
        """Whether launching is that of 2021: known by scores in memory, on a device whose host is as old."""
        later = (self.machine.arch == name for name in LATER)
        return self.case.keeps_scores & np.logical_not(np.logical_or.reduce(list(later)))


class AxisCost:
    """What one way of splitting adds to the time of a step. The defaults are those of one that adds nothing."""

    def in_layer(self, plan: Plan, compute: Pass) -> Pass:
        """Return the seconds that a layer waits for this axis in one micro-batch. compute: what may hide some."""
        return Pass()

    def on_host(self, plan: Plan) -> Pass:
        """Return the seconds that the host spends on this axis in a layer of one micro-batch."""
        return Pass()

    def in_step(self, plan: Plan, compute: Pass) -> Values:
        """Return the seconds that a step waits once. compute: of one micro-batch on a rank, which may hide some."""
        return 0.0


def host_copy_s(plan: Plan, size_bytes: Values) -> Values:
    """Return the seconds of copying so many bytes between the memory of a device and that of its host."""
    return size_bytes / (plan.machine.host_bytes_per_s * plan.constants.host_link_share)


def smooth_max(first: Values, second: Values, power: float) -> Values:
    """Return (first^power + second^power)^(1/power): the larger one, and a little more where they are close."""
    large, small = np.maximum(first, second), np.minimum(first, second)
    share = np.clip(small / np.maximum(large, 1e-30), 0, 1)
    return large * (1 + share**power) ** (1 / power)


def ranks_in_node(degree: Values, inner: Values, gpus_per_node: Values) -> Values:
    """Return how many ranks of an axis share a node. inner: the distance between neighbours, in ranks."""
    return np.clip(gpus_per_node / inner, 1, degree)


def group_bytes_per_s(plan: Plan, *, degree: Values, inner: Values, intra_share: Values, inter_share: Values) -> Values:
    """Return the bandwidth that a ring over the ranks of an axis has on each rank.

    A ring that leaves the node uses the network of all its ranks inside a node together (NCCL's rings of several
    channels), and is never faster than the link inside.
    """
    case, machine = plan.case, plan.machine
    near = ranks_in_node(degree, inner, case.gpus_per_node)
    inside = machine.intra_bytes_per_s * intra_share
    outside = np.minimum(near * machine.inter_bytes_per_s * inter_share, inside)
    return np.where(near >= degree, inside, outside)
