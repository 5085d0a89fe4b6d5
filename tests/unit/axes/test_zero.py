"""ZeRO: what FSDP is told of precision, which rows are packed, and gradients that a step leaves out."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from paralab.axes.data import zero
from paralab.axes.data.unused import Unused
from paralab.axes.data.zero import IN_PLACE_BYTES, ShareUpdates
from paralab.axes.optimizer import make_pieces
from paralab.errors import ConfigError
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


def test_rows_that_ranks_do_not_divide_are_packed_however_many_they_are() -> None:
    large = torch.zeros(3, IN_PLACE_BYTES // 8)
    update = ShareUpdates(make_pieces([large], rank=0, ranks=2), mesh=Mock(size=lambda dim: 2), dim="dp")
    assert not update.in_place and len(update.packed) == 1


def test_a_gradient_of_one_step_is_none_of_the_next() -> None:
    watch = Unused.__new__(Unused)
    watch.part, watch.allowed, watch.used = nn.Linear(1, 1, bias=False), False, {"weight"}  # type: ignore[assignment]
    watch()
    with pytest.raises(ConfigError, match="weight has no gradient in this step"):
        watch()
