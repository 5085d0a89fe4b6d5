"""Expert parallelism before anything runs: its words, what it refuses, and what a rank holds."""

from typing import Any

import pytest
import torch
from torch import nn

from paralab.axes.expert.layers import divide
from paralab.axes.held import state_bytes_of
from paralab.axes.initialise import local
from paralab.axes.tensor.layers import split_layers
from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.layout.strategies import layout_of, name_of
from paralab.measure.routing import RoutingCounts, dropped_share, imbalance, together
from paralab.models import SPECS
from paralab.models.routing import Router
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.pretend import pretended


def test_its_degree_groups_data_ranks_and_multiplies_no_processes() -> None:
    layout = Layout.parse("dp4.ep2.pp2/zero3")
    assert str(layout) == "dp4.ep2.pp2/zero3/1f1b" and layout.world_size == 8
    assert layout.dims == {"pp": 2, "edp": 2, "ep": 2, "cp": 1, "tp": 1}
    assert layout.on(4, parts_of=None) == layout.but(dp=2)
    assert layout.on(6, parts_of=None) == layout.but(dp=3, ep=1)
    groups = Layout.parse("dp8.ep2/zero3/shard4")
    assert groups.dims == {"pp": 1, "dp_replicate": 2, "edp": 2, "ep": 2, "cp": 1, "tp": 1}
    assert groups.size("dp_shard") == 4 and groups.on(4, parts_of=None) == groups.but(dp=4, shard=None)
    assert (name_of(layout), layout_of("expert", 4)) == ("dp+ep+pp", Layout(dp=4, ep=2))
    with pytest.raises(LayoutError, match=r"dp4.ep2 needs dp4 = 4 processes, 8 requested"):
        Layout.parse("dp4.ep2").check_world(8)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("dp3.ep2", "ep2 with dp3: data ranks share the experts, use a dp that ep divides, such as dp2"),
        ("cp2.ep2", "ep2 with dp1: data ranks share the experts, use a dp that ep divides, such as dp2"),
        ("dp2.ep2.tp3", "tp=3 does not divide n_kv_heads=4 of mixtral: use a tp of 1, 2, 4"),
        ("dp2.ep2.cp3", "cp=3 with ring needs 2 x cp = 6 to divide the 16 positions of mixtral"),
        ("dp8.ep4/zero3/shard2", "ep4 with shard2: the 2 ranks of a group hold the whole model.* use ep2, or leave"),
        ("dp2.ep2/local4", "ep2 with local4: ranks that train apart hold whole replicas, and no rank has all experts"),
        ("dp16.ep16", "ep=16 does not divide the 8 experts of mixtral: use an ep of 1, 2, 4, 8"),
    ],
)
def test_what_cannot_be_divided_is_refused(layout: str, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        resolve(RunConfig(model="mixtral", size="tiny", layout=Layout.parse(layout), global_batch_size=48))


def test_a_model_without_experts_is_told_of_one_that_has_them() -> None:
    with pytest.raises(LayoutError, match="gpt2 has no experts to divide: leave ep2 out, or use --model mixtral"):
        resolve(RunConfig(size="tiny", layout=Layout.parse("dp2.ep2"), global_batch_size=16))


def test_loads_of_ranks_are_added_up_before_they_are_compared() -> None:
    loads = together([{"a": [3, 1, 0], "b": [2, 2, 0]}, {"a": [1, 2, 1], "b": [3, 1, 0]}])
    assert loads == {"a": [4, 3, 1], "b": [5, 3, 0]}
    assert imbalance(loads) == 5 / 4 and dropped_share(loads) == 1 / 16
    assert imbalance({}) is None and dropped_share({}) is None


class Experts(nn.Module):
    """Four experts of transformers' form, each with a number of its own in all of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 4
        of_each = torch.arange(4.0)[:, None, None]
        self.up, self.down = (
            nn.Parameter(of_each.expand(4, 8, 6).clone()),
            nn.Parameter(of_each.expand(4, 6, 4).clone()),
        )

    def forward(self, tokens: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return tokens


@pytest.mark.parametrize(("layout", "wide"), [("dp4.ep2", 8), ("dp2.ep2.tp2", 4)])
def test_neighbouring_data_ranks_hold_all_experts_between_them_in_their_order(layout: str, wide: int) -> None:
    for rank in range(4):
        with pretended(Layout.parse(layout), rank) as mesh:
            experts: Any = Experts()
            part = nn.ModuleDict({"experts": experts})
            if mesh.size("tp") > 1:
                split_layers(part, {"experts": "experts"}, mesh=mesh)
            divide(experts, mesh=mesh)
            mine = local(experts.up.detach())
            first = 2 * (rank // mesh.size("tp") % 2)
            assert mine.shape == (2, wide, 6) and mine[:, 0, 0].tolist() == [first, first + 1]
            assert experts.num_experts == 2  # of which modules of transformers count theirs


def test_choices_of_all_micro_batches_are_counted() -> None:
    config = SPECS["mixtral"].config("tiny")
    router = Router(config)
    with RoutingCounts([router]) as counts:
        for _ in range(3):
            router(torch.ones(1, 5, config.hidden))
    (each,) = counts.loads.values()
    assert sum(each) == 3 * 5 * config.top_k


def test_experts_of_all_stages_of_a_rank_are_counted() -> None:
    """Two stages of two blocks hold what four stages of one block do, two of them on each rank."""

    def held(schedule: str) -> float:
        layout = Layout.parse(f"dp4.ep2.pp2/zero2/{schedule}/mb4")
        work = resolve(RunConfig(model="mixtral", size="tiny", layout=layout, global_batch_size=16))
        return sum(state_bytes_of(work, pp_rank).parameters for pp_rank in range(2))

    assert held("interleaved") == held("1f1b")
