"""The own module of `paralab peers --model own`: a Llama as a program writes one, which knows nothing of paralab.

Plain on purpose: `nn.Linear`, `nn.RMSNorm`, SDPA, rotary positions as a table, `F.cross_entropy` on all logits. Its
loss and its data are the program's own as well.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


@dataclass(frozen=True)
class Size:
    """What tells one of these models from another. head: the width of one attention head."""

    width: int
    layers: int
    inner: int
    vocabulary: int
    seq_len: int
    head: int = 64


SIZES = {"small": Size(512, 8, 1376, 4096, 64), "tiny": Size(32, 2, 64, 64, 16, head=8)}  # small: 29.5 M parameters


class Attention(nn.Module):
    """Causal attention with rotary positions. The number of heads is read from the projections."""

    cos: Tensor
    sin: Tensor

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.head = size.head
        self.q, self.k, self.v, self.out = (nn.Linear(size.width, size.width, bias=False) for _ in range(4))
        angles = torch.outer(torch.arange(size.seq_len), 10000.0 ** (-torch.arange(0, size.head, 2) / size.head))
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)  # (seq, head)
        self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Take and return the residual stream (batch, seq, width)."""
        q, k, v = (part(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))

    def turned(self, x: Tensor) -> Tensor:
        """Return queries or keys (batch, heads, seq, head), turned by their positions."""
        a, b = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-b, a], dim=-1) * self.sin


class Block(nn.Module):
    """One layer: attention and a gated MLP, each behind a norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(size.width), nn.RMSNorm(size.width)
        self.attention = Attention(size)
        self.gate, self.up = (nn.Linear(size.width, size.inner, bias=False) for _ in range(2))
        self.down = nn.Linear(size.inner, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Take and return the residual stream (batch, seq, width)."""
        x = x + self.attention(self.attention_norm(x))
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    """A decoder-only transformer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(size.vocabulary, size.width)
        self.layers = nn.ModuleList([Block(size) for _ in range(size.layers)])
        self.norm = nn.RMSNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (batch, seq, vocabulary) of tokens (batch, seq), int64."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss () of logits (batch, seq, vocabulary) and targets (batch, seq), int64."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make(size: Size, seed: int) -> Llama:
    """Return the model with the values that this seed gives, the same in every process."""
    torch.manual_seed(seed)
    return Llama(size)


def samples(size: Size, *, count: int, seed: int) -> TensorDataset:
    """Return tokens and their successors, both (count, seq), int64: every text counts on by a step of its own."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(size.vocabulary, (count, 1), generator=generator)
    stride = torch.randint(1, 8, (count, 1), generator=generator)
    text = (start + stride * torch.arange(size.seq_len + 1)) % size.vocabulary
    return TensorDataset(text[:, :-1], text[:, 1:])


def loader(size: Size, *, count: int, batch_size: int, seed: int) -> DataLoader:
    """Return a loader of `samples`, in their order."""
    return DataLoader(samples(size, count=count, seed=seed), batch_size=batch_size)
