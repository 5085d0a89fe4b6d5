"""ZeRO: the data ranks share optimizer states (1), gradients (2) and parameters (3) (Rajbhandari et al. 2020).

Stage 1 is data parallelism in which each rank updates its share of the rows of every parameter and sends them to
the others. (torch's ZeroRedundancyOptimizer deals out whole parameters, so the rank with the embedding holds most
of the states.) Stages 2 and 3 are FSDP2 (`fully_shard`): parameters, gradients and
optimizer states are split by rows, and the parameters of a block are gathered when it runs. Stage 3 drops them
after forward and gathers them again for backward; stage 2 keeps them from forward to backward. That is where
stage 2 differs from DeepSpeed's, which keeps a full copy of the parameters at all times: ours needs as much
while a step runs, and only a share between steps.

Over one rank all of it is that rank's share: the same code runs, on shards that are whole, and nothing is sent.

With `shardN` the ranks that share are a group of N neighbours, and the groups are replicas of each other (hybrid
sharding: Zhao et al. 2023, PyTorch FSDP, section 3.2.2). What is gathered stays within a group, such as a node, and
gradients are averaged between the groups as shards, 1/N of them from each rank.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from paralab.axes.axis import Finish
from paralab.axes.blocks import blocks_of
from paralab.axes.context import BuildContext
from paralab.axes.data import ddp
from paralab.axes.data.ranks import EXPERT_REPLICATE, replicas, shard_dim, shard_ranks, sharding_dims
from paralab.axes.data.unused import Unused
from paralab.axes.initialise import local
from paralab.axes.optimizer import Piece, make_pieces, share_of_rows
from paralab.axes.precision import DTYPES
from paralab.errors import LayoutError
from paralab.options.choices import Precision
from paralab.processes.mesh import Mesh

IN_PLACE_BYTES = 1 << 20


def shard(part: nn.Module, *, mesh: Mesh, precision: Precision) -> None:
    """Split parameters, gradients and optimizer states of a part over the data ranks, in place."""
    # A pipeline runs a stage many times a step: gathering again for every micro-batch would cost more than it saves.
    reshard = mesh.layout.zero == 3 and mesh.size("pp") == 1
    policy, root_policy = _policies(precision)
    alone = set(numbers_of(part))
    pinned = mesh.device.type == "cuda"
    to_host = CPUOffloadPolicy(pin_memory=pinned) if mesh.layout.offload_parameters else OffloadPolicy()
    offload: dict[str, Any] = {"offload_policy": to_host}
    common = {"mesh": mesh[sharding_dims(mesh.layout)], "ignored_params": alone, **offload}
    for block in blocks_of(part).values():
        for module in block.modules() if mesh.layout.ep > 1 else ():
            if any(ddp.is_divided(p) for p in module.parameters(recurse=False)):
                _shard_experts(module, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy, **offload)
        fully_shard(block, reshard_after_forward=reshard, mp_policy=policy, **common)
    fully_shard(part, reshard_after_forward=False, mp_policy=root_policy, **common)


def _shard_experts(module: nn.Module, *, mesh: Mesh, **common: Any) -> None:
    """Shard experts over the ranks that share them; their gradients are sums over the tokens of all data ranks."""
    fully_shard(module, mesh=mesh[sharding_dims(mesh.layout, experts=True)], **common)
    assert isinstance(module, FSDPModule)
    if mesh.size(EXPERT_REPLICATE) > 1:  # where one rank of a group has them, `finish` divides
        module.set_gradient_divide_factor(replicas(mesh.layout))
        module.set_force_sum_reduction_for_comms(True)  # gloo has no sum of multiples


def numbers_of(part: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of shape (), which have no rows to share: they are whole on every rank."""
    return [p for p in part.parameters() if p.ndim == 0]


def finish(parts: Iterable[nn.Module], context: BuildContext, *, unused: bool) -> Finish | None:
    """Return what completes the gradients that FSDP does not: of parameters of shape (), and of those not used.

    unused: whether a step may leave parameters without a gradient. None where it completes all of them.
    Raises: LayoutError where it cannot be seen which parameters are used.
    """
    mesh, layout, held = context.mesh, context.layout, list(parts)
    watched = context.own is not None and layout.pp == 1 and context.run.compile == "none"
    if unused and not watched:
        what = "pipeline stages" if layout.pp > 1 else "compiled blocks"
        raise LayoutError(
            f"unused_parameters=True with {what} under {layout}: which parameters a step uses is not seen there: "
            "use zero1, or a layout without ZeRO"
        )
    watches = [Unused(part, mesh=mesh, allowed=unused) for part in held] if watched else []
    numbers = [(name, p) for part in held for name, p in part.named_parameters() if p.ndim == 0]
    divided = [p for part in held for p in part.parameters() if ddp.is_divided(p)]
    sole = divided if shard_ranks(layout) == layout.ep else []  # one rank of those that ZeRO divides over has each
    if not watches and not numbers and not sole:
        return None

    def complete() -> None:
        for watch in watches:
            watch()
        for grad in (p.grad for p in sole if p.grad is not None):
            local(grad).div_(layout.ep)  # whose tokens it is of; between groups FSDP has taken the mean
        ddp.average_gradients(numbers, mesh=mesh, unused=unused)

    return Finish(complete)


def reduce_between_groups(model: nn.Module, *, now: bool) -> None:
    """Have the next backward of a sharded model average gradients over the groups of `shardN`, or put that off.

    Within a group FSDP reduces after every micro-batch: keeping whole gradients would undo what it is for.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(now)


def shares(parameters: Iterable[Tensor], *, mesh: Mesh) -> tuple[list[Piece], Callable[[], None] | None]:
    """Return what this rank updates under stage 1, and what follows an update; None where nobody else updates.

    parameters: of any shapes. Ranks that share an expert divide its rows among them, all data ranks those of the rest.
    """
    every, updates = list(parameters), []
    pieces: list[Piece] = []
    kinds = [(shard_dim(mesh.layout), [p for p in every if not ddp.is_divided(p)])]
    if experts := [p for p in every if ddp.is_divided(p)]:
        kinds.append((EXPERT_REPLICATE, experts))
    for dim, some in kinds:
        mine = make_pieces(some, rank=mesh.rank(dim), ranks=mesh.size(dim))
        pieces += mine
        if mesh.size(dim) > 1:
            updates.append(ShareUpdates(mine, mesh=mesh, dim=dim))

    def share() -> None:
        for update in updates:
            update()

    return pieces, share if updates else None


class ShareUpdates:
    """After the update, gather every parameter from the ranks that own its rows.

    Large parameters are gathered in place; the others are packed, so that each bucket is one all-gather.
    """

    def __init__(self, pieces: list[Piece], *, mesh: Mesh, dim: str) -> None:
        """dim: of the mesh, along which the ranks are that share the rows."""
        self.group, self.ranks = mesh.group(dim), mesh.size(dim)
        whole = [x for x in pieces if local(x.parameter).nbytes >= IN_PLACE_BYTES and self._divides(x)]
        self.in_place = [(local(x.parameter.detach()), x.updated.detach()) for x in whole]
        in_place = {id(x) for x in whole}
        self.packed = [x for x in pieces if id(x) not in in_place and local(x.parameter).ndim]

    def _divides(self, piece: Piece) -> bool:
        tensor = local(piece.parameter)
        return tensor.is_contiguous() and tensor.ndim > 0 and tensor.shape[0] % self.ranks == 0

    @torch.no_grad()
    def __call__(self) -> None:
        works = [dist.all_gather_single(full, mine, group=self.group, async_op=True) for full, mine in self.in_place]
        self._gather_packed()
        for work in works:
            work.wait()

    def _gather_packed(self) -> None:
        if not self.packed:
            return
        blocks = [-(-local(x.parameter).shape[0] // self.ranks) for x in self.packed]  # rows a rank owns at most
        sizes = [
            block * math.prod(local(x.parameter).shape[1:]) if block else 0
            for block, x in zip(blocks, self.packed, strict=True)
        ]
        mine = self.packed[0].updated.new_zeros(sum(sizes))
        for x, room in zip(self.packed, mine.split(sizes), strict=True):
            room[: x.updated.numel()].copy_(x.updated.flatten())
        every = mine.new_empty(self.ranks * len(mine))
        dist.all_gather_single(every, mine, group=self.group)
        for rank, part in enumerate(every.split(len(mine))):
            for x, room in zip(self.packed, part.split(sizes), strict=True):
                tensor = local(x.parameter)
                rows = tensor[share_of_rows(tensor.shape[0], rank=rank, ranks=self.ranks)]
                rows.copy_(room[: rows.numel()].view_as(rows))


def _policies(precision: Precision) -> tuple[MixedPrecisionPolicy, MixedPrecisionPolicy]:
    """Return the policy of blocks and of the root, whose output (loss, or what the next stage gets) is fp32."""
    if precision in ("fp32", "fp64"):
        return MixedPrecisionPolicy(), MixedPrecisionPolicy()
    policy = MixedPrecisionPolicy(param_dtype=DTYPES[precision], reduce_dtype=torch.float32)
    return policy, replace(policy, output_dtype=torch.float32)


def finalise(part: nn.Module, mesh: Mesh) -> None:
    """Bring what FSDP does not shard to the device: its shards may have been made elsewhere (`offload-parameters`)."""
    for module in part.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(mesh.device)
    for parameter in numbers_of(part):
        parameter.data = parameter.data.to(mesh.device)
