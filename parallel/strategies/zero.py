"""ZeRO: the data ranks share optimizer states (1), gradients (2) and parameters (3) (Rajbhandari et al. 2020).

Stage 1 is torch's ZeroRedundancyOptimizer. Stages 2 and 3 are FSDP2 (`fully_shard`): parameters, gradients and
optimizer states are split by rows, and the parameters of a block are gathered when it runs. Stage 3 drops them
after forward and gathers them again for backward; stage 2 keeps them from forward to backward. That is where
stage 2 differs from DeepSpeed's, which keeps a full copy of the parameters at all times: ours needs as much
while a step runs, and only a share between steps.
"""

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from parallel.cluster import Mesh
from parallel.layout import Layout
from parallel.precision import DTYPES
from parallel.spec import Strategy


def shard(part: nn.Module, *, mesh: Mesh, precision: str) -> None:
    """Split parameters, gradients and optimizer states of a part over the data ranks, in place."""
    # A pipeline runs a stage many times a step: gathering again for every micro-batch would cost more than it saves.
    reshard = mesh.layout.zero == 3 and mesh.size("pp") == 1
    policy, root_policy = _policies(precision)
    for block in part.blocks.values():
        fully_shard(block, mesh=mesh["dp"], reshard_after_forward=reshard, mp_policy=policy)
    fully_shard(part, mesh=mesh["dp"], reshard_after_forward=False, mp_policy=root_policy)


def _policies(precision: str) -> tuple[MixedPrecisionPolicy, MixedPrecisionPolicy]:
    """Return the policy of blocks and of the root, whose output (loss, or what the next stage gets) is fp32."""
    if precision in ("fp32", "fp64"):
        return MixedPrecisionPolicy(), MixedPrecisionPolicy()
    dtypes = {"param_dtype": DTYPES[precision], "reduce_dtype": torch.float32}
    return MixedPrecisionPolicy(**dtypes), MixedPrecisionPolicy(**dtypes, output_dtype=torch.float32)


def settle(part: nn.Module) -> None:
    """Let FSDP pad its shards now, so that the local tensors that the optimizer holds stay the same objects."""
    for module in part.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


STRATEGIES = (
    Strategy(
        name="zero1",
        axes=("dp",),
        when="optimizer states are what does not fit",
        costs="ddp, and a broadcast of the updated parameters",
        layout=lambda nproc: Layout(dp=nproc, zero=1),
    ),
    Strategy(
        name="zero2",
        axes=("dp",),
        when="gradients do not fit either",
        costs="one all-gather of parameters, one reduce-scatter of gradients a step",
        layout=lambda nproc: Layout(dp=nproc, zero=2),
    ),
    Strategy(
        name="zero3",
        axes=("dp",),
        when="parameters do not fit on one device",
        costs="a second all-gather: 1.5 times the bytes of ddp",
        layout=lambda nproc: Layout(dp=nproc, zero=3),
    ),
)
