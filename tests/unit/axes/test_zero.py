"""What FSDP is told of precision."""

from typing import Any

import pytest
import torch
from torch import nn

from paralab.axes.data import zero
from paralab.layout import Layout
from paralab.options.choices import Precision
from paralab.processes.pretend import pretended


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_leaves_a_sharded_stage_is_in_fp32(precision: Precision) -> None:
    """As the next stage expects it, whatever products are in."""
    dtypes: list[torch.dtype] = []
    stage: Any = nn.Sequential(nn.Linear(4, 4))
    stage.block_names = ()
    stage[0].register_forward_hook(lambda module, inputs, out: dtypes.append(out.dtype))
    with pretended(Layout.parse("dp2/zero3"), 0) as mesh:
        zero.shard(stage, mesh=mesh, precision=precision)
        assert stage(torch.ones(2, 4)).dtype == torch.float32
    assert dtypes == [{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]]
