"""How many calls of a collective are predicted: each begins with the latency of the link, whatever it carries."""

from collections import Counter

import pytest
from torch import nn

from paralab.axes.data import ddp
from paralab.axes.sent import predicted_transfers
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.pretend import pretended

BLOCKS = 4


@pytest.mark.parametrize(
    ("layout", "gathers", "reductions"),
    [
        ("dp2/zero3", 2 * BLOCKS + 1, BLOCKS + 1),  # blocks before forward and backward, all else once
        ("dp2/zero2", BLOCKS + 1, BLOCKS + 1),
    ],
)
def test_a_block_is_gathered_and_reduced_by_one_call(layout: str, gathers: int, reductions: int) -> None:
    work = resolve(RunConfig(size="4x32x4v257", layout=Layout.parse(layout), global_batch_size=8, accumulation=2))
    calls: Counter[str] = Counter()
    for transfer in predicted_transfers(work)["dp"]:
        calls[transfer.op] += transfer.calls
    assert (calls["all_gather"], calls["reduce_scatter"]) == (2 * gathers, 2 * reductions)


def test_gradients_of_several_buckets_are_as_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    work = resolve(RunConfig(size="4x32x4v257", layout=Layout.parse("dp2"), global_batch_size=8))
    size = 4 * work.n_parameters
    monkeypatch.setattr(ddp, "BUCKET_BYTES", size // 3)
    (gradients,) = [x for x in predicted_transfers(work)["dp"] if x.when == "backward"]
    assert (gradients.payload_bytes, gradients.calls) == (size, 3 + (size % 3 > 0))


def test_buckets_are_as_large_as_those_of_distributed_data_parallel() -> None:
    with pretended(Layout(dp=2), 0) as mesh:
        assert ddp.replicate(nn.Linear(2, 2), mesh=mesh).bucket_bytes_cap == ddp.BUCKET_BYTES
