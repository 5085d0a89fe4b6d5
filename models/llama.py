"""Llama 3 (Grattafiori et al. 2024, arXiv:2407.21783): config, module, SPEC.

RMSNorm before each layer, rotary positions, attention in which several queries share a key and a value, a gated MLP,
no biases, and an output layer of its own (but for the 1B and 3B of Llama 3.2, whose output layer is the embedding).

Two choices make one module fit every strategy, with one product where others have two or three. Query, key and value
come from one linear layer whose rows are ordered by key-value head (head 0: its queries, its key, its value; head 1:
...). Gate and up come from another, ordered by part (part 0: gate, up; part 1: ...). So any contiguous split of the
rows that leaves key-value heads whole is a smaller layer of the same form. The vocabulary is padded as GPT-2's is.

Sizes have the published dimensions and a window of 8,192, that of pre-training (section 3.4.1; `--seq-len` takes
others). Their 128,256 rows are kept, so that times, bytes and memory compare with those that others publish; texts are
encoded by the tokenizer of the package, whose 50,257 tokens are the first rows.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab.models import decoder
from paralab.models.decoder import Decoder, Embed
from paralab.models.generation import Cache
from paralab.models.sequence import Attend, Sequence, SequenceShape
from paralab.models.sizes import decimal, dims, letters, number_text, numbers, preset_of, whole, written
from paralab.models.spec import Flops, ModelSpec, at_least_fp32
from paralab.models.vocabulary import padded, tokenizer_of

VOCAB_SIZE = 128_256
ROPE_THETA = 500_000.0
NORM_EPS = 1e-5


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 stretches rotary positions: waves that are long beside `original_seq_len` become `factor` longer.

    Those shorter than original_seq_len / high_freq_factor stay, those longer than original_seq_len / low_freq_factor
    are stretched in full, and between the two the stretch grows.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_seq_len: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of one model. ffn: width of the gated MLP. `tokenizer` names the encoding that texts are read with.

    Raises: ValueError when heads do not divide the width, or key-value heads the heads.
    """

    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: int
    ffn: int
    seq_len: int = 8192
    vocab_size: int = VOCAB_SIZE
    rope_theta: float = ROPE_THETA
    rope_scaling: RopeScaling | None = None
    norm_eps: float = NORM_EPS
    tied: bool = False  # the output layer is the embedding
    tokenizer: str = "gpt2"
    task: str = "text"

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.n_heads):
            raise ValueError(f"hidden={self.hidden} is not a multiple of 2 x n_heads={self.n_heads}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}")

    @property
    def head_dim(self) -> int:
        return self.hidden // self.n_heads

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding, a multiple of 64."""
        return padded(self.vocab_size)

    @property
    def ffn_parts(self) -> int:
        """Parts that gate and up are ordered by: any number of ranks that divides heads and ffn divides it."""
        return math.gcd(self.n_kv_heads, self.ffn)


LlamaT = TypeVar("LlamaT", bound=LlamaConfig)


def rotate(x: Tensor, config: LlamaConfig, positions: Tensor) -> Tensor:
    """Turn pairs of features by angles that grow with the position (Su et al. 2021, RoFormer, section 3.4.2).

    x: (batch, seq, ..., head_dim), at positions (seq,) in fp32 or wider. A pair is feature i and i + head_dim / 2, as
    in the checkpoints of Hugging Face. Angles are computed in the dtype of the positions.
    """
    half, wide = config.head_dim // 2, at_least_fp32(x)
    frequencies = 1 / config.rope_theta ** (torch.arange(half, dtype=wide.dtype, device=x.device) / half)
    if (scaling := config.rope_scaling) is not None:
        waves = frequencies * (scaling.original_seq_len / (2 * math.pi))  # in the original window
        kept = (waves - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        frequencies = torch.lerp(frequencies / scaling.factor, frequencies, kept.clamp(0, 1))
    angles = positions.view(-1, *[1] * (x.dim() - 2)) * frequencies  # (seq, ..., half)
    cos, sin = angles.cos(), angles.sin()
    a, b = wide.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Attention(nn.Module, Sequence):
    """Causal self-attention with grouped queries (Ainslie et al. 2023).

    The number of heads is read from the projection, so a split one has fewer.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.queries = config.n_heads // config.n_kv_heads  # that share a key and a value
        self.qkv = nn.Linear(config.hidden, (config.n_heads + 2 * config.n_kv_heads) * config.head_dim, bias=False)
        self.proj = nn.Linear(config.hidden, config.hidden, bias=False)
        self.attend = Attend(causal=True, queries=self.queries)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Take and return (batch, seq, hidden); with a cache, of the positions that follow those in it."""
        qkv = self.qkv(x)  # (batch, seq', kv_heads (queries + 2) head_dim); seq' > seq under sequence parallelism
        qkv = qkv.unflatten(-1, (-1, self.queries + 2, self.config.head_dim))
        qk, v = qkv.split((self.queries + 1, 1), dim=-2)
        start = cache.length if cache is not None else 0
        qk = rotate(qk, self.config, self.own_positions(qk, start=start))
        q, k = qk.split((self.queries, 1), dim=-2)
        q, k, v = (x.flatten(-3, -2).transpose(1, 2) for x in (q, k, v))  # (batch, heads or kv_heads, seq', head_dim)
        y = self.attend(q, k, v) if cache is None else cache.attend(self, q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers up, of which one gates the other by SiLU, and one down (SwiGLU, Shazeer 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.part = config.ffn // config.ffn_parts
        self.up = nn.Linear(config.hidden, 2 * config.ffn, bias=False)  # part 0: gate, up; part 1: gate, up; ...
        self.down = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (batch, seq, hidden)."""
        gate, up = self.up(x).unflatten(-1, (-1, 2, self.part)).unbind(-2)  # (batch, seq', parts, ffn / parts)
        return self.down((F.silu(gate) * up).flatten(-2))


class Block(nn.Module):
    """One layer of the transformer: attention, then an MLP, each after a norm and added to the residual stream."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Take and return the residual stream (batch, seq, hidden)."""
        x = x + self.attn(self.norm1(x), cache)
        return x + self.mlp(self.norm2(x))


class Llama(Decoder):
    """The whole model, or the part of it that a pipeline stage keeps (see paralab.models.spec, rule 2).

    Initialised as GPT-2 is: the paper says nothing of it.
    """

    def __init__(self, config: LlamaConfig) -> None:
        norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        super().__init__(config, embed=Embed(config), block=Block, norm=norm, tied=config.tied)


def flops(config: LlamaConfig) -> Flops:
    """Count 6 N + 12 L H S a token, attention in full (PaLM, Chowdhery et al. 2022, appendix B).

    N counts the weights of matrix products: blocks and output layer, no embedding or norms.
    """
    attention = 2 * config.hidden * config.head_dim * (config.n_heads + config.n_kv_heads)
    weights = config.n_layers * (attention + 3 * config.hidden * config.ffn) + config.vocab_size * config.hidden
    products = 12 * config.n_layers * config.hidden * config.seq_len  # of queries and keys, of weights and values
    return Flops(per_sample=config.seq_len * (6 * weights + products), formula="6N+12LHS")


SIZES = {
    "tiny": LlamaConfig(8, 32, 8, 4, ffn=48, seq_len=16, vocab_size=257, tokenizer="bytes"),
    # of our own: as many rows as the tokenizer of the package has tokens
    "nano": LlamaConfig(4, 64, 4, 2, ffn=192, seq_len=128, vocab_size=50_257),
    "160m": LlamaConfig(12, 768, 12, 4, ffn=2304, seq_len=1024, vocab_size=50_257),
    # Llama 3.2, https://huggingface.co/meta-llama/Llama-3.2-1B and -3B, config.json
    "1b": LlamaConfig(16, 2048, 32, 8, ffn=8192, rope_scaling=RopeScaling(factor=32.0), tied=True),
    "3b": LlamaConfig(28, 3072, 24, 8, ffn=8192, rope_scaling=RopeScaling(factor=32.0), tied=True),
    # Llama 2, https://huggingface.co/meta-llama/Llama-2-7b-hf and -13b-hf, config.json
    "llama2-7b": LlamaConfig(32, 4096, 32, 32, ffn=11008, seq_len=4096, vocab_size=32_000, rope_theta=10_000.0),
    "llama2-13b": LlamaConfig(40, 5120, 40, 40, ffn=13824, seq_len=4096, vocab_size=32_000, rope_theta=10_000.0),
    # Llama 3, Grattafiori et al. 2024, table 3
    "8b": LlamaConfig(32, 4096, 32, 8, ffn=14336),
    "70b": LlamaConfig(80, 8192, 64, 8, ffn=28672),
    "405b": LlamaConfig(126, 16384, 128, 8, ffn=53248),
}

_LETTERS = {"f": "ffn", "v": "vocab_size", "t": "rope_theta", "n": "norm_eps"}
_SCALING = "/".join(decimal(name) for name in ("low_freq_factor", "high_freq_factor")) + f"/{whole('original_seq_len')}"
_FORM = re.compile(
    f"{dims('n_layers', 'hidden', 'n_heads')}(?:/{whole('n_kv_heads')})?{letters(LlamaConfig, _LETTERS)}"
    f"(?:s{decimal('factor')}(?:/{_SCALING})?)?(?P<tied>tied)?"
)


def custom_size(text: str) -> LlamaConfig | None:
    """Read a size such as 16x2048x32/8: layers, width, heads, and those of keys where they are fewer.

    After it, in this order, what differs from Llama 3: f8192, the width of the MLP (else 3.5 times the width, as in
    8B); v50304, the vocabulary; t10000, rope_theta; n1e-6, norm_eps; s8 or s8/1/4/8192, a `RopeScaling`; tied.
    Returns: None for another form. Raises: ValueError when the heads do not divide the width.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    scaling = numbers(match, RopeScaling)
    return of_numbers(
        LlamaConfig, numbers(match, LlamaConfig) | {"rope_scaling": RopeScaling(**scaling) if scaling else None}
    )


def of_numbers(kind: type[LlamaT], given: Mapping[str, Any]) -> LlamaT:
    """Return a config of these fields, the others as usual: keys as many as heads, an MLP of 3.5 times the width."""
    usual = {"n_kv_heads": given["n_heads"], "ffn": 7 * given["hidden"] // 2}
    config = kind(**usual | dict(given))
    return replace(config, tokenizer=tokenizer_of(config.vocab_size))


def size_of(config: LlamaConfig) -> str:
    """Return the preset with the parameters of a config, or the form that `custom_size` reads."""
    usual = of_numbers(LlamaConfig, dimensions(config))
    words = written(config, usual, _LETTERS)
    if config.rope_scaling is not None:
        words += f"s{'/'.join(map(number_text, astuple(config.rope_scaling)))}"
    heads = f"{config.n_heads}/{config.n_kv_heads}"
    custom = f"{config.n_layers}x{config.hidden}x{heads}{words}{'tied' if config.tied else ''}"
    return preset_of(config, SIZES) or custom


def dimensions(config: LlamaConfig) -> dict[str, int]:
    """Return the fields that a size begins with."""
    return {"n_layers": config.n_layers, "hidden": config.hidden, "n_heads": config.n_heads}


SPEC = ModelSpec(
    name="llama",
    sizes=SIZES,
    custom_size=custom_size,
    size_of=size_of,
    custom_form="LAYERSxWIDTHxHEADS/KVHEADS such as 16x2048x32/8, with f8192 and v50304 after it for another width of"
    " the MLP and another vocabulary",
    default_size="nano",
    tiny_size="tiny",
    build=Llama,
    init=decoder.init,
    example=decoder.example,
    n_blocks=lambda config: config.n_layers,
    with_blocks=lambda config, n: replace(config, n_layers=n),
    first=("embed",),
    last=("norm", "head"),
    flops=flops,
    data=lambda config: "alice",
    tensor_plan=lambda config: decoder.PLAN,
    tensor_divides=lambda config: {"n_kv_heads": config.n_kv_heads, "ffn": config.ffn},
    sequence_parallel=True,
    sequence=lambda config: SequenceShape(config.seq_len, config.n_heads, config.n_kv_heads, causal=True),
    hugging_face=lambda: import_module("paralab.models.llama_hf"),
)
