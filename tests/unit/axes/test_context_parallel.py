"""Context parallelism without other processes: which positions a rank has, what a ring computes, what is refused."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch.nn import functional as F

from paralab.axes.check import check_split
from paralab.axes.context_parallel import local
from paralab.axes.context_parallel.pieces import take_early_and_late, take_piece, taken_by, whole_of
from paralab.axes.context_parallel.ring import Passing, Ring
from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.layout.strategies import name_of
from paralab.models import SPECS
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve


def ring_of(rank: int, ranks: int, *, causal: bool) -> Ring:
    return Ring(Mock(rank=lambda: rank, size=lambda: ranks), causal=causal)


@pytest.mark.parametrize("take", [take_piece, take_early_and_late])
def test_every_position_is_taken_once(take: Any) -> None:
    x = torch.arange(24)
    assert torch.cat([take(rank, 3)(x, 0) for rank in range(3)]).sort()[0].equal(x)
    assert take_early_and_late(1, 3)(x, 0).tolist() == [4, 5, 6, 7, 16, 17, 18, 19]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_each_hop_costs_every_rank_the_same(ranks: int) -> None:
    """In products of queries with keys. At home, half of them lie ahead."""
    length = 8
    for hop in range(ranks):
        meetings = [ring_of(r, ranks, causal=True).meeting((r - hop) % ranks, length) for r in range(ranks)]
        costs = {len(range(length)[m.queries]) * len(range(length)[m.keys]) // (2 if m.causal else 1) for m in meetings}
        assert costs == {length * length // 2}


@pytest.mark.parametrize("device", ["cpu", "other"])  # the kernel of the CPU, and products that any device has
@pytest.mark.parametrize(("causal", "width"), [(True, 8), (False, 8), (True, 4), (False, 12)])  # width: of values
def test_parts_of_a_ring_are_attention(monkeypatch: pytest.MonkeyPatch, causal: bool, width: int, device: str) -> None:
    """What the ranks of a ring compute, one after the other, is attention over the sequence and its gradients."""
    if device == "other":
        monkeypatch.setattr(local, "_has_kernel", lambda x: False)
    ranks, generator = 3, torch.Generator().manual_seed(0)
    q, k, v, grad = (
        torch.randn(2, heads, 24, each, dtype=torch.float64, generator=generator, requires_grad=True)
        for heads, each in ((4, 8), (2, 8), (2, width), (4, width))
    )
    want = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    want.backward(grad)
    takes = [(take_early_and_late if causal else take_piece)(rank, ranks) for rank in range(ranks)]
    grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
    with torch.no_grad():
        for rank, take in enumerate(takes):
            ring = ring_of(rank, ranks, causal=causal)
            mine, out_grad, total = take(q, 2), take(grad, 2), None
            for owner in range(rank, rank - ranks, -1):
                keys, values = takes[owner](k, 2), takes[owner](v, 2)
                at, to, masked = ring.meeting(owner % ranks, 8)
                part = local.forward(mine[:, :, at], keys[:, :, to], values[:, :, to], causal=masked)
                total = part.widened() if total is None else total.merge(part, at)
            assert total is not None
            torch.testing.assert_close(total.out, take(want, 2), rtol=1e-12, atol=1e-12)
            own_grad = torch.zeros_like(mine)
            for owner in range(ranks):
                at, to, masked = ring.meeting(owner, 8)
                here = [takes[owner](x, 2)[:, :, to] for x in (k, v)]
                cut = [x[:, :, at] for x in (out_grad, mine)]
                got = local.backward(*cut, *here, *(x[:, :, at] for x in (total.out, total.lse)), causal=masked)
                own_grad[:, :, at] += got[0]
                for whole, term in zip((grad_k, grad_v), got[1:], strict=True):
                    whole[:, :, takes[owner](torch.arange(24), 0)[to]] += term
            torch.testing.assert_close(own_grad, take(q.grad, 2), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(grad_k, k.grad, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(grad_v, v.grad, rtol=1e-11, atol=1e-12)


class LoneRing(Ring):
    """The first of many ranks, which has what the others would send."""

    def __init__(self, every: torch.Tensor) -> None:
        super().__init__(Mock(rank=lambda: 0, size=lambda: len(every)), causal=False)
        self.every = every

    def round(self, kv: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        yield from enumerate(self.every.flatten(1))

    def pass_on(self, mine: torch.Tensor) -> Passing:
        assert mine.dtype == torch.float32
        return Passing(mine, mine, [])


def test_parts_of_a_ring_are_added_up_in_fp32() -> None:
    """In bf16 a sum over 64 ranks would be off by several times what one rounding is."""
    generator, ranks = torch.Generator().manual_seed(0), 64
    every = torch.randn(ranks, 2, 1, 2, 8, 16, generator=generator).bfloat16()  # keys and values of 2 heads
    q, grad = (torch.randn(1, 4, 8, 16, generator=generator).bfloat16() for _ in range(2))
    q.requires_grad_()
    out = LoneRing(every)(q, *every[0].clone().requires_grad_())
    out.backward(grad)
    exact = q.detach().double().requires_grad_()
    k, v = every.double().permute(1, 2, 3, 0, 4, 5).flatten(3, 4)
    want = F.scaled_dot_product_attention(exact, k, v, enable_gqa=True)
    want.backward(grad.double())
    for got, right in ((out.detach(), want.detach()), (q.grad, exact.grad)):
        assert (got.double() - right).norm() / right.norm() < 2**-8
    assert local._summed(grad, heads=2).dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "size", "layout", "said"),
    [
        (
            "gpt2",
            "tiny",
            "cp3",
            "2 x cp = 6 to divide the 16 positions of gpt2: use a cp of 2, 4, 8, or another",
        ),
        ("gpt2", "tiny", "cp16", "cp=16 with ring needs 2 x cp = 32"),
        (
            "gpt2",
            "tiny",
            "cp8/ulysses",
            "cp=8 with ulysses does not divide the 4 heads of gpt2: use a cp of 2, 4,",
        ),
        (
            "gpt2",
            "tiny",
            "cp4.tp2/ulysses",
            "cp x tp = 8 with ulysses does not divide the 4 heads",
        ),
        ("llama", "tiny", "cp8/ulysses", "cp=8 with ulysses does not divide the 4 key-value heads of llama"),
        ("diffusion", "tiny-dit", "cp3", "cp=3 with ring needs cp = 3 to divide the 16 positions of diffusion"),
        ("diffusion", "tiny-points", "cp2", "diffusion is given no sequences that ranks could share: use a layout"),
        ("resnet", "tiny", "cp2", "resnet is given no sequences that ranks could share: use a layout without cp"),
        ("gpt2", "tiny", "cp2.tp8/sp", "tp=8 does not divide n_heads=4"),
        ("gpt2", "tiny", "cp8.tp4/sp", "tp=4 with sp does not divide the 2 positions"),
    ],
)
def test_what_does_not_divide_is_refused(model: str, size: str, layout: str, said: str) -> None:
    with pytest.raises(LayoutError) as caught:
        check_split(Layout.parse(layout), spec=SPECS[model], config=SPECS[model].config(size))
    assert said in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("dp2/ring", "ring without context parallelism: add a degree such as cp2, or leave ring out"),
        ("dp4.cp2/zero3/shard2", "shard2 with cp2: ZeRO divides over all data x context ranks there, leave shard2 out"),
        ("cp2/rings", "did you mean ring"),
    ],
)
def test_words_that_do_not_fit_together_are_refused(layout: str, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        Layout.parse(layout)


def test_a_layout_says_how_attention_goes_over_the_sequence() -> None:
    layout = Layout.parse("tp2.cp2.dp2/zero3")
    assert str(layout) == "dp2.cp2.tp2/zero3/ring" and Layout.parse(str(layout)) == layout
    assert layout.dims == {"pp": 1, "dp": 2, "cp": 2, "tp": 2} and layout.joined == {"dp_cp": ("dp", "cp")}
    assert (layout.size("dp_cp"), layout.everyone, Layout.parse("dp2.cp2").everyone) == (4, "world", "dp_cp")
    assert (name_of(layout), name_of(Layout(cp=2)), name_of(Layout(dp=2, cp=2))) == ("dp+cp+tp", "context", "dp+cp")


def test_zero_needs_data_or_context_ranks() -> None:
    assert Layout.parse("cp2/zero3").zero == 3
    with pytest.raises(LayoutError, match="there is nothing to shard over"):
        Layout.parse("tp2/zero3")


def test_another_engine_is_refused() -> None:
    with pytest.raises(LayoutError, match="--engine deepspeed cannot run layout cp2/ring"):
        resolve(RunConfig(size="tiny", layout=Layout(cp=2), engine="deepspeed"))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layout", ["cp3", "cp3/ulysses"])
def test_what_ranks_have_is_put_together_in_the_order_of_the_sequence(layout: str, causal: bool) -> None:
    parsed, x = Layout.parse(layout), torch.arange(24).view(1, 12, 2)
    every = torch.stack([taken_by(rank, parsed, causal=causal)(x, 1) for rank in range(3)])
    assert whole_of(parsed, causal=causal)(every).equal(x)
