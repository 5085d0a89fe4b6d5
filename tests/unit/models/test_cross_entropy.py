"""The fused output layer and loss against torch's linear and cross_entropy."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from paralab.models import cross_entropy
from paralab.models.cross_entropy import LinearCrossEntropy
from tests.unit.thread_ranks import ThreadRanks

N, HIDDEN, VOCAB, PADDED = 12, 8, 37, 48


def inputs(*, n: int = N, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states (n, hidden), a weight (padded, hidden) and targets (n,)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, HIDDEN, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(PADDED, HIDDEN, generator=generator, dtype=torch.float64)
    targets = torch.randint(VOCAB, (n,), generator=generator)
    targets[:2] = torch.tensor([0, VOCAB - 1])  # both edges of the vocabulary
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def layer(weight: Tensor, *, row_offset: int = 0, ranks: ThreadRanks | None = None) -> LinearCrossEntropy:
    module = LinearCrossEntropy(hidden=HIDDEN, vocab_size=VOCAB, padded_vocab=PADDED)
    module.weight = torch.nn.Parameter(weight.detach().clone())
    module.row_offset = row_offset
    if ranks is not None:
        module.all_reduce, module.ranks = ranks.all_reduce, ranks.size
    return module


def reference(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, gradient of x and gradient of the weight in fp64, from torch's own functions."""
    x, weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    loss = F.cross_entropy(F.linear(x, weight[:VOCAB]), targets)
    loss.backward()
    assert x.grad is not None and weight.grad is not None
    return loss.detach(), x.grad, weight.grad


def fused(module: LinearCrossEntropy, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.detach().clone().requires_grad_()
    loss = module(x, targets)
    loss.backward()
    assert x.grad is not None and module.weight.grad is not None
    return loss.detach(), x.grad, module.weight.grad


def small_chunks(monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype) -> None:
    """Make chunks of that many rows, whether they are counted with or without padding."""
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", rows * PADDED * dtype.itemsize)


@pytest.mark.parametrize("rows", [1, 5, N, 100])
def test_any_chunk_size_gives_loss_and_gradients(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    small_chunks(monkeypatch, rows, torch.float64)
    x, weight, targets = inputs()
    assert_close(fused(layer(weight), x, targets), reference(x, weight, targets), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("rows", [5, 100])
def test_every_dtype(monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype, tolerance: float) -> None:
    small_chunks(monkeypatch, rows, dtype)
    x, weight, targets = inputs(dtype=dtype)
    got = fused(layer(weight), x, targets)
    assert [value.dtype for value in got] == [torch.float32, dtype, dtype]
    for value, want in zip(got, reference(x, weight, targets), strict=True):
        assert_close(value.double(), want, rtol=tolerance, atol=tolerance * want.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype_and_keeps_fp32_gradients(dtype: torch.dtype) -> None:
    x, weight, targets = inputs(dtype=torch.float32)
    module = layer(weight)
    with torch.autocast("cpu", dtype=dtype):
        loss = module(x, targets)
    loss.backward()
    want = reference(x, weight, targets)
    assert loss.dtype == x.grad.dtype == module.weight.grad.dtype == torch.float32
    assert 1e-7 < abs(loss.item() / want[0].item() - 1) < 2e-2  # lower precision took effect
    assert_close(module.weight.grad.double(), want[2], rtol=0.05, atol=0.05 * want[2].abs().max().item())


def test_gradients_agree_with_finite_differences() -> None:
    x, weight, targets = inputs(n=5)
    module = layer(weight)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"weight": weight}, (x, targets))

    assert torch.autograd.gradcheck(loss, (x, weight))


def test_the_gradient_of_the_loss_is_passed_on() -> None:
    x, weight, targets = inputs()
    module = layer(weight)
    (module(x, targets) * 3).backward()
    _, want_x, want_weight = reference(x, weight, targets)
    assert_close(x.grad, 3 * want_x)
    assert_close(module.weight.grad, 3 * want_weight)


def test_backward_twice_gives_the_same() -> None:
    x, weight, targets = inputs()
    module = layer(weight)
    loss = module(x, targets) * 0.5
    loss.backward(retain_graph=True)
    first = x.grad.clone(), module.weight.grad.clone()
    loss.backward()
    assert torch.equal(x.grad, 2 * first[0]) and torch.equal(module.weight.grad, 2 * first[1])


def test_gradients_in_two_parts_are_those_in_one() -> None:
    """As a zero-bubble schedule asks for them: of the input first, of the weight later."""
    x, weight, targets = inputs()
    module = layer(weight)
    loss = module(x, targets)
    (grad_x,) = torch.autograd.grad(loss, x, torch.tensor(0.25, dtype=torch.float64), retain_graph=True)
    (grad_weight,) = torch.autograd.grad(loss, module.weight, torch.tensor(0.25, dtype=torch.float64))
    _, want_x, want_weight = reference(x, weight, targets)
    assert_close(grad_x, want_x / 4)
    assert_close(grad_weight, want_weight / 4)


def test_padding_has_no_part_in_it() -> None:
    x, weight, targets = inputs()
    other = weight.detach().clone()
    other[VOCAB:] = 1e3
    one, two = fused(layer(weight), x, targets), fused(layer(other), x, targets)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert one[2][VOCAB:].count_nonzero() == 0
    assert layer(weight)(x).shape == (N, VOCAB)


def test_without_targets_it_returns_logits_of_the_words() -> None:
    x, weight, _ = inputs()
    x = x.view(3, 4, HIDDEN)
    assert_close(layer(weight)(x), F.linear(x, weight[:VOCAB]))


def test_sequences_are_rows() -> None:
    x, weight, targets = inputs()
    loss = layer(weight)(x.view(3, 4, HIDDEN), targets.view(3, 4))
    assert_close(loss.detach(), reference(x, weight, targets)[0])


def test_without_gradients_the_loss_is_the_same() -> None:
    x, weight, targets = inputs()
    with torch.no_grad():
        loss = layer(weight)(x, targets)
    assert_close(loss, reference(x, weight, targets)[0])


# Eight ranks hold 6 rows each: the last words lie on the seventh, and the eighth has padding only.
@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("rows", [5, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_split_vocabulary_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, ranks: int, rows: int, dtype: torch.dtype
) -> None:
    small_chunks(monkeypatch, rows, dtype)
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", cross_entropy.CHUNK_BYTES // ranks)
    x, weight, targets = inputs(dtype=dtype)
    group, held = ThreadRanks(ranks), PADDED // ranks

    def work(rank: int) -> tuple[Tensor, Tensor, Tensor]:
        part = weight[rank * held : (rank + 1) * held]
        return fused(layer(part, row_offset=rank * held, ranks=group), x, targets)

    results = group.run(work)
    want = reference(x, weight, targets)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    for loss, grad_x, _ in results:  # whole on every rank
        assert_close(loss.double(), want[0], rtol=tolerance, atol=0)
        assert_close(grad_x.double(), want[1], rtol=tolerance, atol=tolerance * want[1].abs().max().item())
    grad_weight = torch.cat([result[2] for result in results])
    assert_close(grad_weight.double(), want[2], rtol=tolerance, atol=tolerance * want[2].abs().max().item())
    assert group.calls > 0


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e3, 1e-30], ids=["huge", "tiny"])
def test_extreme_logits_stay_finite(ranks: int, dtype: torch.dtype, scale: float) -> None:
    x, weight, targets = inputs(dtype=dtype, scale=scale)
    group, held = ThreadRanks(ranks), PADDED // ranks

    def work(rank: int) -> tuple[Tensor, Tensor, Tensor]:
        part = weight[rank * held : (rank + 1) * held]
        return fused(layer(part, row_offset=rank * held, ranks=group if ranks > 1 else None), x, targets)

    want = reference(x, weight, targets)
    for result in group.run(work):
        assert all(value.isfinite().all() for value in result)
        assert result[0].item() == pytest.approx(want[0].item(), rel=1e-5 if dtype == torch.float32 else 1e-2)


def test_a_certain_prediction_costs_nothing() -> None:
    weight = torch.zeros(PADDED, HIDDEN)
    weight[3, 0] = 1.0
    x = torch.zeros(4, HIDDEN)
    x[:, 0] = 1e4
    loss, grad_x, _ = fused(layer(weight), x, torch.full((4,), 3))
    assert loss.item() == 0.0 and grad_x.abs().max() < 1e-6
