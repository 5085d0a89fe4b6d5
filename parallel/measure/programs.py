"""What is run to find out how fast a device is: operations that training consists of, in several sizes.

None of it is a model of this package: sizes are powers of two, and what a model runs lies between them.
"""

import random
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Program = Callable[[], object]
WIDTH = 128  # of the rows that element-wise operations run over
# sides of matrix products, and the most multiplications and additions that one may take
SIDES = {"cpu": (16, 64, 256, 1024, 4096, 16384), "cuda": (64, 256, 1024, 4096, 16384)}
MOST_FLOPS = {"cpu": 6e8, "cuda": 5e12}
MOST_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 28}  # of a tensor
ELEMENTS = {"cpu": (1 << 17, 1 << 10, 1 << 20, 1 << 14, 1 << 21), "cuda": (1 << 21, 1 << 12, 1 << 26, 1 << 17)}
_POSITIONS = 1 << 11  # of all heads that attention is measured with


def everything(device: torch.device, dtype: torch.dtype) -> list[Program]:
    """Return all programs of a dtype, of each kind in turn, so that the first ones are of all kinds."""
    shuffled = random.Random(0)
    kinds = [list(kind(device, dtype)) for kind in (elementwise, products, attentions, convolutions)]
    for kind in kinds[1:]:
        shuffled.shuffle(kind)
    kinds += [list(updates(device))] if dtype == torch.float32 else []
    placed = [(i / len(kind), number, one) for number, kind in enumerate(kinds) for i, one in enumerate(kind)]
    return [one for _, _, one in sorted(placed, key=lambda place: place[:2])]


def products(device: torch.device, dtype: torch.dtype) -> Iterator[Program]:
    """Yield matrix products of all shapes with these sides that are not too large."""
    sides = SIDES[device.type]
    for m, n, k in product(sides, repeat=3):
        small, most = m * n * k < sides[1] ** 2 * sides[0], max(m * n, m * k, n * k)
        if 2.0 * m * n * k <= MOST_FLOPS[device.type] and not small and most <= MOST_ELEMENTS[device.type]:
            yield _product(m, n, k, device, dtype)


def _product(m: int, n: int, k: int, device: torch.device, dtype: torch.dtype) -> Program:
    def run() -> object:
        return torch.mm(torch.ones(m, k, device=device, dtype=dtype), torch.ones(k, n, device=device, dtype=dtype))

    return run


def attentions(device: torch.device, dtype: torch.dtype) -> Iterator[Program]:
    """Yield attention, forward and backward, over sequences of several lengths."""
    for length, width, causal in product((16, 64, 256, 1024), (32, 64), (True, False)):
        yield _attention(length, width, causal, device, dtype)


def _attention(length: int, width: int, causal: bool, device: torch.device, dtype: torch.dtype) -> Program:
    def run() -> object:
        q, k, v = (
            _random(2, max(1, _POSITIONS // length), length, width, device=device, dtype=dtype, needs_grad=True)
            for _ in range(3)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return torch.autograd.grad(y, (q, k, v), torch.ones_like(y))

    return run


def convolutions(device: torch.device, dtype: torch.dtype) -> Iterator[Program]:
    """Yield convolutions, forward and backward, from images of one channel to small ones of many."""
    shapes = ((1, 16, 32), (8, 8, 32), (16, 16, 16), (16, 32, 16), (32, 32, 16), (64, 64, 8), (128, 128, 8))
    for (inside, out, size), kernel, samples in product(shapes, (1, 3), (4, 32)):
        yield _convolution(samples, inside, out, size, kernel, device, dtype)


def _convolution(
    samples: int, inside: int, out: int, size: int, kernel: int, device: torch.device, dtype: torch.dtype
) -> Program:
    def run() -> object:
        images = _random(samples, inside, size, size, device=device, dtype=dtype, needs_grad=True)
        weight = _random(out, inside, kernel, kernel, device=device, dtype=dtype, needs_grad=True)
        y = F.conv2d(images, weight, padding=kernel // 2)
        return torch.autograd.grad(y, (images, weight), torch.ones_like(y))

    return run


def elementwise(device: torch.device, dtype: torch.dtype) -> Iterator[Program]:
    """Yield what moves bytes, over tensors of several sizes: one program for each size, eager."""
    for elements in ELEMENTS[device.type]:
        yield _rows(elements // WIDTH, device, dtype)
        yield _images(elements, device, dtype)


def _rows(rows: int, device: torch.device, dtype: torch.dtype) -> Program:
    """Activations, norms, sums, copies and lookups over (rows, WIDTH)."""

    def run() -> object:
        x, scale, shift = (_random(*shape, device=device, dtype=dtype, needs_grad=True) for shape in _shapes(rows))
        y = F.layer_norm(x, (WIDTH,), scale, shift)
        y = F.gelu(y, approximate="tanh") + F.silu(x)
        y = y * (1 + scale) + shift
        y = y + F.relu(x)
        y.sub(x).div(scale.detach() + 2).sum()
        whole = torch.stack([x.detach(), y.detach()]).transpose(0, 1).clone()
        torch.cat([whole, whole])
        whole.copy_(whole + 1)
        y.detach().exp().log().square().mean(dim=-1)
        y.detach().amax(dim=-1)
        torch.softmax(y.detach(), dim=-1)
        table = torch.ones(rows + 1, WIDTH, device=device, dtype=dtype, requires_grad=True)
        chosen = F.embedding(torch.arange(rows, device=device) % (rows + 1), table)
        targets = torch.zeros(rows, dtype=torch.int64, device=device)
        loss = F.cross_entropy(y.float(), targets) + chosen.float().square().mean()
        return torch.autograd.grad(loss, (x, scale, shift, table))

    return run


def _shapes(rows: int) -> tuple[tuple[int, ...], ...]:
    return (rows, WIDTH), (WIDTH,), (WIDTH,)


def _images(elements: int, device: torch.device, dtype: torch.dtype) -> Program:
    """Norms over channels, statistics and pooling over (samples, 32 channels, 16, 16)."""
    channels, size = 32, 16

    def run() -> object:
        samples = max(1, elements // (channels * size**2))
        x = _random(samples, channels, size, size, device=device, dtype=dtype, needs_grad=True)
        weight, bias = (torch.ones(channels, device=device, requires_grad=True) for _ in range(2))
        mean, var = torch.zeros(channels, device=device), torch.ones(channels, device=device)
        y = F.relu(F.batch_norm(x, mean, var, weight, bias, training=True))
        z = F.group_norm(x, 8)
        torch.var_mean(x.detach(), dim=(0, 2, 3))
        fixed = F.batch_norm(x.detach(), mean, var, eps=1e-5)
        torch.addcmul(bias[:, None, None], fixed, weight[:, None, None])
        total = (y + z).mean((2, 3)).float().sum()
        return torch.autograd.grad(total, (x, weight, bias))

    return run


def updates(device: torch.device) -> Iterator[Program]:
    """Yield steps of fused AdamW, and norms of gradients, for parameters of several sizes."""
    for elements in ELEMENTS[device.type]:
        yield _update(elements, device)


def _update(elements: int, device: torch.device) -> Program:
    def run() -> object:
        parameter = nn.Parameter(torch.ones(elements, device=device))
        parameter.grad = torch.ones(elements, device=device)
        torch.optim.AdamW([parameter], fused=True).step()
        torch.optim.SGD([parameter], momentum=0.9, fused=True).step()
        norm = torch.stack(torch._foreach_norm([parameter.grad])).square().sum()
        torch.linalg.vector_norm(parameter.grad.view(-1, min(elements, 4096)), dim=-1)
        torch._foreach_mul_([parameter.grad], torch.clamp(1 / (norm + 1), max=1.0))
        return norm

    return run


class Small(nn.Module):
    """Layers so small that what they compute takes no time: what is left is what it takes to start them."""

    def __init__(self, layers: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(approximate="tanh"), nn.Linear(8, 8))
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (rows, 8)."""
        for layer in self.layers:
            x = x + layer(x)
        return x


def _random(*shape: int, device: torch.device, dtype: torch.dtype, needs_grad: bool) -> Tensor:
    own = torch.Generator(device).manual_seed(0)
    values = torch.randn(*shape, device=device, generator=own).to(dtype)
    return values.requires_grad_(needs_grad)
