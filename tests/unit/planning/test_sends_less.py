"""What is refused of data parallelism that sends less, in one line that says what to type."""

from typing import Any

import pytest

from paralab.errors import UsageError
from paralab.layout import Layout
from paralab.layout import strategies as named
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.training.checks import check
from paralab.training.options import TrainConfig


@pytest.mark.parametrize(
    ("layout", "options", "said"),
    [
        ("dp2/zero3", {"grad_compression": "int8"}, "use --strategy ddp in its place with two processes or more"),
        ("dp2.tp2", {"grad_compression": "bf16"}, "use --strategy ddp in its place with two processes or more"),
        ("dp1", {"grad_compression": "bf16"}, "use --strategy ddp in its place with two processes or more"),
        ("dp2", {"grad_compression": "int8", "precision": "fp16"}, "use fp32 or bf16"),
        ("dp2", {"grad_compression": "int8", "engine": "accelerate"}, "use --engine torch"),
        ("dp2/local2", {"grad_compression": "int8"}, "leave one of them out"),
        ("dp2/local2", {"engine": "deepspeed"}, "use one of these, or --engine torch"),
        ("dp2", {"outer_optimizer": "nesterov"}, "write the layout as dp4/local8"),
        ("dp2/local4", {"outer_fragments": 2}, "with --outer-optimizer nesterov, or leave it out"),
        ("dp2", {"outer_fragments": 2}, "write the layout as dp4/local8 with --outer-optimizer nesterov"),
        ("dp2/local2", {"outer_optimizer": "nesterov", "outer_fragments": 3}, "and local2: .* use 2 or fewer"),
        ("dp2/local9", {"outer_optimizer": "nesterov", "outer_fragments": 5}, "with 4 blocks .* use 4 or fewer"),
        ("dp2/local4", {"outer_overlap": 2}, "with --outer-fragments 1: .* 2 fragments or more"),
        ("dp2/local4", {"outer_fragments": 2, "outer_overlap": 4}, "use fewer steps than the N of /localN and 2"),
        ("dp2/local2", {"model": "resnet", "size": "20"}, r"use norms without them \(--norm group of resnet\)"),
    ],
)
def test_refused(layout: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        resolve(RunConfig(layout=Layout.parse(layout), **options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["dp2/local0", "dp1/local2", "dp2/zero1/local2", "tp2/local2"])
def test_layouts_refused(layout: str) -> None:
    with pytest.raises(UsageError, match="local"):
        Layout.parse(layout)


def test_a_layout_of_ranks_that_train_apart_is_called_by_no_strategy() -> None:
    layout = Layout.parse("dp4/local8")
    assert Layout.parse(str(layout)) == layout
    assert named.name_of(layout) not in named.STRATEGIES
    with pytest.raises(UsageError, match="--strategy ddp with --layout dp4/local8, which is local"):
        resolve(RunConfig(strategy="ddp", layout=layout))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eval_every": 3}, "use a multiple of 2, such as --eval-every 4"),
        ({"save_every": 5}, "use a multiple of 2, such as --save-every 6"),
        ({"steps": 7}, "use --steps 8"),
        ({"resume": "x"}, "start anew from the weights with --init-from"),
    ],
)
def test_ranks_are_not_evaluated_saved_or_continued_while_apart(tmp_path: Any, options: Any, said: str) -> None:
    run = TrainConfig(layout=Layout.parse("dp2/local2"), out=str(tmp_path / "r"), **{"steps": 8, **options})
    with pytest.raises(UsageError, match=said):
        check(resolve(run))
