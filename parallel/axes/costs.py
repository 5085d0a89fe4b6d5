"""What a training costs, as the axes and the planner speak of it: the case, the machine, and seconds of a pass.

Every figure is a number, or a numpy array with one value for each of many cases: the formulas are written once and work
on both, so that a search can ask for thousands of layouts at once. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

Values = Any  # a number or text, or an array (cases,) with one for each case
GIB = 2.0**30


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training configuration with nothing left open, or many of them: every field is a value or an array (cases,).

    The fields are the columns of the contract in docs/planner.md; shard is 0 where ZeRO divides over all data ranks.
    offload_optimizer: whether master weights and moments are in the memory of the host.
    layers_first, layers_middle and layers_last are of
    the first pipeline rank, of the fullest one between (0 where there is none) and of the last one; layers_held is of
    the rank between that keeps most activations, and held_rank is its number.
    """

    layers: Values
    hidden: Values
    heads: Values
    kv_heads: Values
    head_dim: Values
    ffn: Values
    gated: Values
    vocab: Values
    tied_embeddings: Values
    position: Values
    norm: Values
    experts: Values
    experts_per_token: Values
    expert_ffn: Values
    sequence_length: Values
    n_gpus: Values
    gpus_per_node: Values
    dp: Values
    tp: Values
    pp: Values
    cp: Values
    ep: Values
    zero: Values
    schedule: Values
    vpp: Values
    layers_first: Values
    layers_middle: Values
    layers_last: Values
    layers_held: Values
    held_rank: Values
    sequence_parallel: Values
    cp_style: Values
    micro_batch_size: Values
    global_batch_size: Values
    recompute: Values
    precision: Values
    gradient_bytes: Values
    state_bytes: Values
    attention: Values
    fused_norm: Values
    compile: Values
    optimizer: Values
    framework: Values
    dp_overlap: Values
    tp_overlap: Values
    memory_kind: Values
    shard: Values = 0
    offload_optimizer: Values = False

    def but(self, **values: Values) -> "Case":
        """Return the same case with other values."""
        return replace(self, **values)

    @property
    def micro_batches(self) -> Values:
        """Micro-batches of a data rank in a step."""
        return self.global_batch_size / (self.dp * self.micro_batch_size)

    @property
    def tokens(self) -> Values:
        """Tokens of one micro-batch on one rank, after context parallelism and before sequence parallelism."""
        return self.micro_batch_size * self.sequence_length / self.cp

    @property
    def sequence_share(self) -> Values:
        """The share of these tokens that a rank has between the parts that tensor parallelism divides."""
        return np.where(self.sequence_parallel, 1 / self.tp, 1.0)

    @property
    def sharded_over(self) -> Values:
        """The ranks that ZeRO divides over, where it divides: all data and context ranks, or a group of them."""
        return np.where(self.shard > 0, self.shard, self.dp * self.cp)

    @property
    def experts_sharded_over(self) -> Values:
        """The same of experts, which only the ranks that hold the same ones can divide further."""
        return np.maximum(self.sharded_over * self.tp / self.expert_tensor_ranks / self.ep, 1)

    @property
    def expert_tensor_ranks(self) -> Values:
        """The tensor ranks that divide each expert: all, or one where expert ranks are more than data ranks.

        Published recipes with such degrees divide whole experts over tensor ranks as well (expert tensor degree 1).
        """
        return np.where(self.ep <= self.dp * self.cp, self.tp, 1)

    @property
    def is_mixture(self) -> Values:
        return self.experts > 0

    @property
    def is_compiled(self) -> Values:
        return self.compile

    @property
    def keeps_scores(self) -> Values:
        """Whether attention writes its scores to memory."""
        return (self.attention == "eager") | (self.attention == "fused")

    @property
    def is_of_2021(self) -> Values:
        """Whether the software is of 2021, which flash attention came after: known by scores in memory."""
        return self.keeps_scores

    @property
    def is_narrow(self) -> Values:
        """Whether products are in 8 or 4 bits."""
        return (self.precision == "fp8") | (self.precision == "nvfp4")

    @property
    def is_deepspeed(self) -> Values:
        return (self.framework == "deepspeed") | (self.framework == "megatron-deepspeed")

    @property
    def is_own(self) -> Values:
        """Whether the software is paralab itself, as `paralab run` trains: weights in fp32, cast for each pass."""
        return self.framework == "paralab"

    @property
    def element_bytes(self) -> Values:
        """Bytes of an element of what is computed in the precision of the case, or in 16 bits beside fewer."""
        return np.where(self.precision == "fp32", 4, 2)

    @property
    def is_counted(self) -> bool:
        """Whether what its blocks take was counted, and does not follow from the shape of a transformer."""
        return False

    def held(self, what: str, rank: str) -> Values:
        """Return the layers of a pipeline rank, where those that are fuller count as more. what: weights or kept.

        rank: first, middle, last or held, as the fields layers_* have it.
        """
        return getattr(self, f"layers_{rank}")


@dataclass(frozen=True, kw_only=True)
class CountedCase(Case):
    """A training of a model whose parts were counted for one sample: block_* of its average block, first_* and last_*.

    The fields are those of `paralab.planning.parts.Part`. layers_*, weights_* and kept_* are how many average blocks a
    rank holds: by FLOPs, by weights, and by what is kept for backward. unit: what throughput counts.
    """

    unit: str
    units_per_sample: int
    block_weights: Values
    block_divided_weights: Values
    block_flops: Values
    block_divided_flops: Values
    block_traffic: Values
    block_kept: Values
    block_boundary: Values
    block_launches: Values
    block_reductions: Values
    first_weights: Values
    first_flops: Values
    first_traffic: Values
    first_kept: Values
    first_launches: Values
    last_weights: Values
    last_flops: Values
    last_traffic: Values
    last_kept: Values
    last_launches: Values
    weights_first: Values
    weights_middle: Values
    weights_last: Values
    weights_held: Values
    kept_first: Values
    kept_middle: Values
    kept_last: Values
    kept_held: Values

    @property
    def is_counted(self) -> bool:
        return True

    @property
    def divided_share(self) -> Values:
        """The share of the work of a block that tensor ranks leave to one of them."""
        divided = self.block_divided_flops / np.maximum(self.block_flops, 1.0)
        return 1 - divided + divided / self.tp

    def held(self, what: str, rank: str) -> Values:
        return getattr(self, f"{what}_{rank}")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device of a case and its links, each a value or an array (cases,).

    peak_flops: of dense matrix products in the precision of the case, half_flops: in 16 bits, both per second.
    watts_ratio: watts for a FLOP, of the device that stands for its generation. intra_bytes_per_s, inter_bytes_per_s:
    of the links of one GPU inside a node and between nodes, in one direction.
    """

    peak_flops: Values
    half_flops: Values
    arch: Values
    watts_ratio: Values
    memory_bytes: Values
    memory_bytes_per_s: Values
    intra_bytes_per_s: Values
    inter_bytes_per_s: Values


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


def stacked(cases: "list[Case]") -> Case:
    """Return many cases as one whose fields are arrays (cases,)."""
    return Case(**{field.name: _array([getattr(case, field.name) for case in cases]) for field in fields(Case)})


def _array(values: list[Any]) -> np.ndarray:
    array = np.array(values)
    return array.astype(float) if array.dtype.kind in "iu" else array
