"""A training as the planner is asked about it: values, or arrays of many cases at once (cases,)."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

Values = Any  # a number or text, or an array (cases,) with one for each case


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training configuration with nothing left open, or many of them: every field is a value or an array (cases,).

    The fields are the columns of the contract in docs/planner.md; shard is 0 where ZeRO divides over all data ranks.
    offload: what is in the memory of the host: optimizer (master weights and moments), parameters (with gradients and
    these), activations (those that layers keep), or nothing ("").
    layers_first, layers_middle and layers_last are of the first pipeline rank, of the fullest one between (0 where
    there is none) and of the last one; layers_held is of the rank between that keeps most activations, and held_rank is
    its number.
    mixture_share: layers with experts, as a share of all that the case speaks of; mixture_first and so on, of those of
    a rank. shared_ffn: inner width of the experts that every token meets in such a layer. ffn is that of the others.
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
    offload: Values = ""
    shared_ffn: Values = 0
    mixture_share: Values = 1.0
    mixture_first: Values = 1.0
    mixture_middle: Values = 1.0
    mixture_last: Values = 1.0
    mixture_held: Values = 1.0

    def but(self, **values: Values) -> "Case":
        """Return the same case with other values."""
        return replace(self, **values)

    def of_rank(self, rank: str) -> "Case":
        """Return the case of the layers of a pipeline rank, of which others may have experts than of the whole model.

        rank: first, middle, last or held, as the fields mixture_* have it.
        """
        return self.with_mixture(getattr(self, f"mixture_{rank}"))

    def with_mixture(self, share: Values) -> "Case":
        """Return the case of layers of which such a share has experts."""
        return self.but(mixture_share=share) if np.any(share != self.mixture_share) else self

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
    def dense_width(self) -> Values:
        """The inner width of the MLPs of a layer that every token meets, in the mean of its layers."""
        mixture = self.mixture_share * self.shared_ffn + (1 - self.mixture_share) * self.ffn
        return np.where(self.is_mixture, mixture, self.ffn)

    @property
    def routed_copies(self) -> Values:
        """How many experts each token is sent to in a layer, in the mean of its layers; 0 in a dense model."""
        return np.where(self.is_mixture, self.mixture_share * self.experts_per_token, 0)

    @property
    def inner_width(self) -> Values:
        """The inner width of all MLPs of a layer that a token meets, its experts among them, in the mean of layers."""
        return self.dense_width + self.routed_copies * self.expert_ffn

    @property
    def is_compiled(self) -> Values:
        return self.compile

    @property
    def keeps_scores(self) -> Values:
        """Whether attention writes its scores to memory."""
        return (self.attention == "eager") | (self.attention == "fused")

    @property
    def is_narrow(self) -> Values:
        """Whether products are in 8 or 4 bits."""
        return (self.precision == "fp8") | (self.precision == "nvfp4")

    @property
    def is_deepspeed(self) -> Values:
        return (self.framework == "deepspeed") | (self.framework == "megatron-deepspeed")

    @property
    def updates_on_host(self) -> Values:
        """Whether the host updates the weights, since it has the optimizer states."""
        return (self.offload == "optimizer") | (self.offload == "parameters")

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
    rank holds: by FLOPs, by weights, and by what is kept for backward. unit: what throughput counts. cast_kept_share,
    cast_boundary_share: what is left of what a block keeps and hands on where FSDP casts all to 16 bits.
    """

    unit: str
    units_per_sample: int
    block_weights: Values
    block_divided_weights: Values
    block_flops: Values
    block_divided_flops: Values
    block_traffic: Values
    block_kept: Values
    block_divided_kept: Values
    block_boundary: Values
    cast_kept_share: Values
    cast_boundary_share: Values
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

    @property
    def kept_share(self) -> Values:
        """The share of what a block keeps for backward that tensor ranks leave to one of them."""
        divided = self.block_divided_kept / np.maximum(self.block_kept, 1.0)
        return 1 - divided + divided / self.tp

    def held(self, what: str, rank: str) -> Values:
        return getattr(self, f"{what}_{rank}")


def stacked(cases: "list[Case]") -> Case:
    """Return many cases as one whose fields are arrays (cases,)."""
    return Case(**{field.name: _array([getattr(case, field.name) for case in cases]) for field in fields(Case)})


def _array(values: list[Any]) -> np.ndarray:
    array = np.array(values)
    return array.astype(float) if array.dtype.kind in "iu" else array
