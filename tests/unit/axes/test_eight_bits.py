"""AdamW in 8 bits: what is packed and how large it is, what a checkpoint gives back, and what is refused."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from paralab import checkpoint
from paralab.axes import eight_bits
from paralab.axes.held import check_packed, state_bytes
from paralab.axes.optimizer import set_learning_rate
from paralab.engines import native
from paralab.engines.native import NativeEngine
from paralab.engines.state import optimizer_chunks
from paralab.errors import ConfigError
from paralab.layout import Layout
from paralab.measure.dry_run import dry_run
from paralab.measure.memory import MemoryCensus
from paralab.options.config import RunConfig
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh

ALONE = Mesh(Layout(), torch.device("cpu"))
SMALL: dict[str, Any] = {"size": "1x64x4v257", "seq_len": 16, "global_batch_size": 4, "optimizer": eight_bits.NAME}


def work_of(**options: Any) -> Work:
    return resolve(RunConfig(**{"layout": Layout(), **SMALL, **options}))


def trained(steps: int, work: Work) -> NativeEngine:
    engine = native.build(work.context(ALONE))
    for batch in islice(training_batches(work, ALONE), steps):
        engine.step(batch)
    return engine


@pytest.mark.parametrize("numel", [4096, 4095, 4352, 5000, 256, 65536])
def test_packed_is_what_torchao_packs_and_as_large(numel: int) -> None:
    parameter = torch.nn.Parameter(torch.randn(numel))
    optimizer = eight_bits.make([{"params": [parameter]}], RunConfig(optimizer=eight_bits.NAME))
    parameter.grad = torch.randn(numel)
    optimizer.step()
    (state,) = optimizer.state.values()
    for name in eight_bits.SIGNED:
        moment = state[name]
        assert eight_bits.is_in_eight_bits(moment) == eight_bits.is_packed(numel)
        parts = [moment.codes, moment.scale, moment.qmap] if eight_bits.is_packed(numel) else [moment]
        assert sum(part.nbytes for part in parts) == eight_bits.moment_bytes(numel, 4)


def test_state_in_memory_is_the_predicted_one_to_the_byte() -> None:
    work = work_of()
    engine = trained(1, work)
    with MemoryCensus(engine.parts, engine.optimizers) as census:
        engine.step(next(training_batches(work, ALONE)))
    assert census.report().rest["optimizer"] == state_bytes(work).optimizer
    packed, every = eight_bits.counted(engine.optimizer.state.values())
    assert 0.5 < packed / every < 1  # biases and norms, and 257 rows of 64


def test_the_row_says_how_much_is_in_eight_bits() -> None:
    run = work_of().run
    assert eight_bits.columns(run, [(6, 8), (0, 2)]) == {"optimizer_8bit_share": 0.6}
    assert eight_bits.columns(RunConfig(), [(0, 8)]) == {}
    work, engine = work_of(), trained(1, work_of())
    (share,) = eight_bits.columns(run, [eight_bits.counted(engine.optimizer.state.values())]).values()
    assert share == check_packed(work)


def test_a_dry_run_holds_as_much_as_a_real_one() -> None:
    work = work_of(layout=Layout.parse("dp4/zero3"))
    found = dry_run(work, backend="gloo")
    assert max(rank.memory.rest["optimizer"] for rank in found) == state_bytes(work).optimizer


@pytest.mark.parametrize("signed", [True, False])
def test_what_a_state_stood_for_is_packed_again_without_rounding(signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2048, 256, generator=generator) * 10.0 ** torch.randint(-9, 3, (2048, 1), generator=generator)
    values[0] = 0
    values[1] = -values[1].abs()  # the largest is the least of the table, which is not -1
    first, rounded = eight_bits.pack(values if signed else values.abs(), signed=signed, device=torch.device("cpu"))
    assert rounded == 2047  # all blocks but zeros
    stood_for = eight_bits.unpack(first)
    again, rounded = eight_bits.pack(stood_for, signed=signed, device=torch.device("cpu"))
    assert rounded == 0
    torch.testing.assert_close(eight_bits.unpack(again), stood_for, rtol=0, atol=0)
    _, rounded = eight_bits.pack(stood_for.T.contiguous(), signed=signed, device=torch.device("cpu"))
    assert rounded > 0


def test_a_run_continues_bit_for_bit_under_the_same_layout(tmp_path: Path) -> None:
    work = work_of()
    whole = trained(5, work)
    checkpoint.save(trained(3, work), tmp_path)
    resumed = native.build(work.context(ALONE))
    said: list[str] = []
    assert checkpoint.load(resumed, tmp_path, say=said.append) == 3
    for batch in islice(training_batches(work, ALONE), 3, 5):
        resumed.step(batch)
    assert said == []
    for (name, ours), (_, theirs) in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=name)


def test_a_checkpoint_has_the_numbers_that_states_stand_for() -> None:
    """So that another optimizer, or another cut into blocks, reads them."""
    engine = trained(2, work_of())
    packed = [x for state in engine.optimizer.state.values() for x in state.values() if hasattr(x, "codes")]
    written = [chunk.data for found in optimizer_chunks(engine).values() for chunk in found]
    assert packed and all(type(x) is torch.Tensor for x in written)
    for state in packed:
        assert any(x.shape == state.shape and torch.equal(x, state.dequantize()) for x in written)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "deepspeed"}, "--optimizer adamw8bit with --engine deepspeed"),
        ({"precision": "fp64"}, "it computes in fp32"),
        ({"size": "1x8x2v257"}, "no tensor that a rank updates has 4,096 or more and is a multiple of 256"),
    ],
)
def test_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        work_of(**options)
    assert "\n" not in str(caught.value)


def test_without_the_package_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight_bits, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'paralab\[optim8bit\]'"):
        work_of()


def test_the_learning_rate_reaches_both_kinds_of_optimizer() -> None:
    for name in (eight_bits.NAME, "adamw"):
        parameter = torch.nn.Parameter(torch.ones(2, 4096))
        groups = [{"params": [parameter], "weight_decay": 0.0}]
        optimizer = eight_bits.make(groups, RunConfig()) if name != "adamw" else torch.optim.AdamW(groups)
        set_learning_rate(optimizer, 0.25)
        parameter.grad = torch.ones(2, 4096)
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), torch.full((2, 4096), 0.75), rtol=1e-6, atol=0)
