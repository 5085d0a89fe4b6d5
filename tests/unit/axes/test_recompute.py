"""Recomputed blocks under torch.compile: the same gradients from fewer saved bytes, or one line that says why not."""

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from paralab import World, parallelize
from paralab.axes.blocks import blocks_of
from paralab.axes.pipeline.passes import pass_order
from paralab.axes.recompute import attention_of, checkpoint_blocks, recompute, recomputed_attention
from paralab.errors import ConfigError
from paralab.layout import Layout
from paralab.layout.schedules import SCHEDULES, find
from paralab.models import SPECS
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve


def gradients_and_saved_bytes(model: nn.Module, words: Tensor) -> tuple[Tensor, int]:
    """Return the gradients of all parameters (n,), and how many bytes backward keeps beside the parameters."""
    saved: dict[int, int] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(words, targets=words)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), sum(saved.values())


def test_compiled_blocks_are_recomputed_too() -> None:
    spec = SPECS["gpt2"]
    config = spec.config("2x16x2v32")
    plain = spec.build(config)
    plain.block_names = spec.blocks(config)  # type: ignore[assignment]
    both = copy.deepcopy(plain)
    checkpoint_blocks(both, 1)
    for block in blocks_of(both).values():
        block.compile(backend="aot_eager")  # what is saved is decided before a backend generates code
    words = torch.randint(32, (2, config.seq_len), generator=torch.Generator().manual_seed(0))
    expected, all_bytes = gradients_and_saved_bytes(plain, words)
    found, kept_bytes = gradients_and_saved_bytes(both, words)
    torch.testing.assert_close(found, expected)
    assert kept_bytes < all_bytes / 3


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_recomputed_attention_keeps_no_scores(compiled: bool) -> None:
    """Where several kernels compute it: where one does, it keeps no scores anyway."""
    spec = SPECS["gpt2"]
    config = replace(spec.config("2x16x2v32"), seq_len=32)
    plain = spec.build(config)
    plain.block_names = spec.blocks(config)  # type: ignore[assignment]
    selective = copy.deepcopy(plain)
    recompute(selective, "selective")
    assert recomputed_attention(selective) == len(attention_of(plain)) == 2 and recomputed_attention(plain) == 0
    for block in blocks_of(selective).values() if compiled else ():
        block.compile(backend="aot_eager")
    words = torch.randint(32, (3, config.seq_len), generator=torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH):
        expected, all_bytes = gradients_and_saved_bytes(plain, words)
        found, kept_bytes = gradients_and_saved_bytes(selective, words)
    torch.testing.assert_close(found, expected)
    scores = 2 * 3 * 2 * config.seq_len**2 * 4  # of 2 layers, 3 samples, 2 heads, fp32
    assert all_bytes - kept_bytes >= scores


@pytest.mark.parametrize(
    ("model", "layout", "checkpointing", "reason"),
    [
        ("gpt2", "tp2", "selective", "over tensor ranks: torch cannot compile the two together, leave one of them"),
        ("gpt2", "tp2", "full", "over tensor ranks: torch cannot compile the two together, leave one of them out"),
        (
            "resnet",
            "dp2",
            "2",
            "the batch norm of resnet would count each batch twice; use another norm, such as --norm",
        ),
    ],
)
def test_what_cannot_be_compiled_and_recomputed_is_refused(
    model: str, layout: str, checkpointing: str, reason: str
) -> None:
    run = RunConfig(
        model=model, size="tiny", layout=Layout.parse(layout), compile="default", checkpointing=checkpointing
    )
    with pytest.raises(ConfigError, match=f"^--compile default with --checkpointing {checkpointing}.*{reason}"):
        resolve(run)


def test_schedules_that_split_backward_are_those_that_say_so() -> None:
    for word, pp, micro_batches in product((*SCHEDULES, "zero-bubblex1", "interleavedx3"), (2, 4), (8, 16)):
        order = pass_order(word, pp=pp, micro_batches=1 if word == "naive" else micro_batches)
        schedule = find(word)
        assert schedule and schedule.splits_backward == any(step.kind == "W" for steps in order for step in steps), word


@pytest.mark.parametrize("schedule", ["zero-bubblex1", "zbv", "dualpipev"])
def test_the_backward_pass_of_compiled_blocks_is_not_split(schedule: str) -> None:
    run = RunConfig(size="tiny", layout=Layout.parse(f"pp2/{schedule}/mb4"), compile="default")
    with pytest.raises(ConfigError, match=f"--compile default with {schedule}, .* is one piece, use 1f1b or inter"):
        resolve(run)


@pytest.mark.parametrize(
    ("model", "layout", "reason"),
    [
        ("resnet", "dp2", "recomputes attention, and resnet has no module of .*Attend: use --checkpointing full"),
        ("gpt2", "cp2", "with cp2/ring, whose ranks exchange keys in attention .*: use --checkpointing full, or a"),
    ],
)
def test_where_attention_alone_cannot_be_recomputed_it_is_refused(model: str, layout: str, reason: str) -> None:
    run = RunConfig(model=model, size="tiny", layout=Layout.parse(layout), checkpointing="selective")
    with pytest.raises(ConfigError, match=f"--checkpointing selective {reason}"):
        resolve(run)


def test_what_a_program_brings_is_refused_alike() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ConfigError, match="the batch norm of Sequential would count each batch twice"):
        parallelize(model, "single", world=World(0, 1, torch.device("cpu")), compile="default", checkpointing="full")
