import mmap
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from paralab.layout import Layout
from paralab.measure import memory
from paralab.measure.memory import MemoryCensus
from paralab.processes.pretend import pretended

WIDTH = 500
WEIGHT = 4 * WIDTH * WIDTH


def _linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH, bias=False)


def test_a_step_of_adam() -> None:
    model = _linear()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

    def step() -> None:
        model(torch.ones(1, WIDTH)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    with MemoryCensus([model], [optimizer]) as first:
        step()
    with MemoryCensus([model], [optimizer]) as second:
        step()
    for census in (first, second):  # states made inside the step are known as such too
        report = census.report()
        assert report.rest == {
            "parameters": WEIGHT,
            "gradients": 0,
            "optimizer": 2 * WEIGHT + 4,  # and the step counter
            "activations": 0,
            "buffers": 0,
            "other": 0,
        }
        assert report.peak["gradients"] == WEIGHT
        assert report.state_peak_bytes == 4 * WEIGHT + 4, "more than is left of it after the step"
        assert report.peak_bytes > sum(report.rest.values())


def test_activations_are_kept_until_backward_and_checkpointing_frees_them() -> None:
    blocks, x = nn.ModuleList([nn.Sigmoid() for _ in range(10)]), torch.ones(WIDTH, WIDTH, requires_grad=True)

    def run(checkpoint: bool) -> int:
        def forward(part: nn.Module, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(part, x, use_reentrant=False) if checkpoint else part(x)

        def pair(a: nn.Module, b: nn.Module) -> nn.Module:
            return nn.Sequential(a, b)

        with MemoryCensus([blocks]) as census:
            y = x
            for i in range(0, 10, 2):
                y = forward(pair(blocks[i], blocks[i + 1]), y)
            del y
        return census.report().peak["activations"]

    # Input and ten outputs; with checkpoints the input, five outputs and the inside of one pair.
    assert run(checkpoint=False) == 11 * WEIGHT
    assert run(checkpoint=True) == 7 * WEIGHT


def test_the_largest_tensors_of_the_peak_are_told_by_place() -> None:
    with MemoryCensus([], places=True) as census:
        one = torch.ones(4, WIDTH, WIDTH)
        three = [torch.ones(2, WIDTH, WIDTH) for _ in range(3)]
        del one
        last = torch.ones(5, WIDTH, WIDTH)
    found = census.report().largest
    assert [(made.count, made.size_bytes // WEIGHT) for made in found] == [(3, 6), (1, 5)]
    assert all(f"{Path(__file__).name}:" in made.made for made in found)
    del three, last


def test_buffers_of_modules_are_others() -> None:
    model = nn.BatchNorm1d(WIDTH)
    with MemoryCensus([model]) as census:
        torch.ones(1)
    assert census.report().rest["other"] == 2 * 4 * WIDTH + 8  # mean, variance, and a counter of 64 bits


def test_views_count_once_and_shared_parameters_too() -> None:
    model = nn.ModuleList([_linear(), _linear()])
    model[1].weight = model[0].weight
    with MemoryCensus([model]) as census:
        y = torch.ones(WIDTH, WIDTH)
        views = [y.view(-1), y[1:], y.t()]
    assert census.report().peak == dict.fromkeys(memory.MEMORY_CATEGORIES, 0) | {
        "parameters": WEIGHT,
        "activations": WEIGHT,
    }
    del views


def test_storages_that_are_resized() -> None:
    gathered = torch.empty(WIDTH, WIDTH)
    gathered.untyped_storage().resize_(0)
    with MemoryCensus([]) as census:
        gathered.untyped_storage().resize_(WEIGHT)
        gathered.fill_(1)
        gathered.untyped_storage().resize_(0)
    assert census.report().peak["buffers"] == WEIGHT
    assert not any(census.report().rest.values())
    assert torch.UntypedStorage.resize_.__name__ == "resize_"


def test_what_an_engine_holds_for_a_part_of_the_step() -> None:
    buckets: list[Tensor] = []
    with MemoryCensus([], held=lambda: {"buffers": buckets}) as census:
        buckets.append(torch.empty(WIDTH, WIDTH))
        torch.ones(1)
        buckets.clear()
    assert census.report().peak["buffers"] == WEIGHT
    assert not any(census.report().rest.values())


def test_what_is_known_stays_what_it_is_where_an_engine_holds_it() -> None:
    """Gradients that lie in a bucket, say."""
    model = _linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def held() -> dict[str, list[Tensor]]:
        return {"buffers": [] if model.weight.grad is None else [model.weight.grad]}

    model(torch.ones(1, WIDTH)).sum().backward()
    with MemoryCensus([model], held=held) as census:
        optimizer.step()
        optimizer.zero_grad()
    assert census.report().peak["gradients"] == WEIGHT and census.report().peak["buffers"] == 0


def test_what_is_sent_is_an_activation_and_what_it_is_received_in_a_buffer() -> None:
    with pretended(Layout.parse("pp2"), 0), MemoryCensus([]) as census:
        sent, received = torch.ones(WIDTH, WIDTH), torch.ones(2 * WIDTH, WIDTH)
        dist.send(sent, 1)
        dist.recv(received, 1)
    assert census.report().peak["activations"] == WEIGHT and census.report().peak["buffers"] == 2 * WEIGHT


def test_an_address_that_is_given_away_again_is_still_taken() -> None:
    """The end of a storage may be told after the next one is at its address."""
    with MemoryCensus([]) as census:
        there = torch.ones(WIDTH, WIDTH)
        census._freed(there.untyped_storage()._cdata, memory._Storage(WEIGHT))
    assert census.report().rest["activations"] == WEIGHT


def test_what_outlives_the_step_was_there_before_it_was_used() -> None:
    early = torch.ones(WIDTH, WIDTH)
    with MemoryCensus([]) as census:
        late = torch.ones(2 * WIDTH, WIDTH)
        del late
        early.add_(1)
    assert census.report().peak["activations"] == 3 * WEIGHT


def test_what_does_not_counts_from_its_first_use() -> None:
    early = torch.ones(WIDTH, WIDTH)
    with MemoryCensus([]) as census:
        late = torch.ones(2 * WIDTH, WIDTH)
        del late
        early.add_(1)
        del early
    assert census.report().peak["activations"] == 2 * WEIGHT


def test_states_of_an_optimizer_that_does_not_step() -> None:
    model = _linear()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, WIDTH)).sum().backward()
    optimizer.step()
    with MemoryCensus([model], [optimizer]) as census:
        torch.ones(1)
    assert census.report().rest == dict.fromkeys(memory.MEMORY_CATEGORIES, 0) | {
        "parameters": WEIGHT,
        "gradients": WEIGHT,
        "optimizer": 2 * WEIGHT + 4,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_process_peak_sees_memory_that_came_and_went() -> None:
    size = 64 * 2**20
    assert memory.reset_process_peak()
    before = memory.process_peak_bytes()
    with mmap.mmap(-1, size) as block:  # not from the allocator, which may have pages left over
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1
    assert memory.process_peak_bytes() - before == pytest.approx(size, rel=0.1)
    assert memory.reset_process_peak()
    assert memory.process_peak_bytes() - before < size / 2


def test_process_peak_elsewhere(tmp_path: Path) -> None:
    assert memory.process_peak_bytes(tmp_path) is None
    (tmp_path / "status").write_text("VmPeak:\t 9000 kB\nVmHWM:\t 3000 kB\nVmRSS:\t 10 kB\n")
    assert memory.process_peak_bytes(tmp_path) == 3000 * 1024
    assert not memory.reset_process_peak(tmp_path / "none")


def test_the_peak_of_a_gpu_is_what_is_allocated_and_what_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU has none."""
    assert memory.device_peak_bytes(torch.device("cpu")) == (None, None)
    gpu, reset = torch.device("cuda", 1), list[torch.device]()
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {gpu: 3}.__getitem__)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", {gpu: 5}.__getitem__)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    assert memory.device_peak_bytes(gpu) == (3, 5)
    memory.reset_device_peak(torch.device("cpu"))
    memory.reset_device_peak(gpu)
    assert reset == [gpu]
