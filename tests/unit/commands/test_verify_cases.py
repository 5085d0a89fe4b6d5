"""What is compared and printed once for a layout, and how."""

import pytest

from paralab.commands.verify import VerifyConfig
from paralab.commands.verify_cases import _not_covered, _remarked, _surrounded, _validates
from paralab.layout import Layout
from paralab.models import Norm
from paralab.planning.resolve import resolve
from paralab.processes.rank import Rank


def test_what_surrounds_a_layout_is_compared_once() -> None:
    def names(*layouts: str) -> list[str]:
        runs = [VerifyConfig(model="gpt2", size="tiny", precision="fp32", layout=Layout.parse(one)) for one in layouts]
        rank = Rank(rank=0, world_size=4, local_rank=0, local_world_size=4, launcher="torchrun")
        return [str(work.layout) for work in _surrounded(runs, rank)]

    assert names("tp2.pp2/1f1b/mb4") == ["tp2.pp2/1f1b/mb4"]
    assert names("dp2.pp2/zero1/1f1b/mb2") == ["dp2.pp2/zero1/1f1b/mb2"]
    assert names("dp4/zero1", "dp4/zero3", "pp4/1f1b/mb4") == ["dp4/zero3", "pp4/1f1b/mb4"]


def test_the_validation_loss_is_compared_where_running_statistics_are_those_of_all_ranks() -> None:
    def validates(norm: Norm) -> bool:
        run = VerifyConfig(model="resnet", size="tiny", precision="fp32", norm=norm, layout=Layout.parse("dp2"))
        return _validates(resolve(run))

    assert not validates("batch")
    assert validates("syncbatch") and validates("group")


def test_a_long_line_without_remarks_is_followed_by_no_empty_one() -> None:
    assert _remarked("x" * 200, "") == "x" * 200
    assert _remarked("x" * 200, "(bf16)") == "x" * 200 + "\n    (bf16)"
    assert _remarked("x  ", "") == "x" and _remarked("x", "(bf16)") == "x (bf16)"


@pytest.mark.parametrize(
    ("layout", "accumulation", "typed"),
    [("dp2.tp2.pp2/mb2", 1, "--engine torch"), ("dp2.ep2.tp2.pp2/mb2", 3, "--accumulation 1")],
)
def test_what_was_not_covered_is_said_with_what_to_type(layout: str, accumulation: int, typed: str) -> None:
    run = VerifyConfig(model="mixtral", precision="fp32", layout=Layout.parse(layout), accumulation=accumulation)
    lines = list(_not_covered([run], []))
    assert f"data order, validation and checkpoints ({typed})" in lines
    assert not any("three axes" in line for line in lines)
