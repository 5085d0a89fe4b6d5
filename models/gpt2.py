"""GPT-2 (Radford et al. 2019) and the GPT-3 family (Brown et al. 2020, table 2.1): config, module, SPEC.

Two choices make one module fit every strategy. Query, key and value come from one linear layer whose rows are
ordered by head (head 0: q, k, v; head 1: q, k, v; ...), so any contiguous split of the rows is a set of whole
heads. The vocabulary is padded to a multiple of 64, so its rows divide over ranks; the padding never enters
the loss.
"""

import math
import re
from dataclasses import dataclass, replace
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab.models.cross_entropy import LinearCrossEntropy
from paralab.models.generation import Cache
from paralab.models.sequence import Attend, Sequence, SequenceShape
from paralab.models.spec import Flops, ModelSpec, Style
from paralab.models.vocabulary import padded, tokenizer_of


@dataclass(frozen=True)
class GPT2Config:
    """Sizes of one model. tokenizer: the encoding that its vocabulary belongs to, "gpt2", "bytes" or a file.

    Raises: ValueError when the heads do not divide the width.
    """

    n_layers: int
    hidden: int
    n_heads: int
    seq_len: int = 1024
    vocab_size: int = 50_257
    tokenizer: str = "gpt2"
    task: str = "text"

    def __post_init__(self) -> None:
        if self.hidden % self.n_heads:
            raise ValueError(f"hidden={self.hidden} is not a multiple of n_heads={self.n_heads}")

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding, a multiple of 64."""
        return padded(self.vocab_size)


class Embed(nn.Module, Sequence):
    """Token and position embeddings."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.padded_vocab, config.hidden)
        self.positions = nn.Embedding(config.seq_len, config.hidden)

    def forward(self, tokens: Tensor, *, start: int = 0) -> Tensor:
        """Take tokens (batch, seq) int64, the first of them at position `start`; return (batch, seq, hidden).

        Of a sequence that several ranks share, return the positions of this one.
        """
        positions = self.positions.weight[start : start + tokens.shape[1]]
        return self.tokens(self.take(tokens, 1)) + self.take(positions, 0)


class Attention(nn.Module):
    """Causal self-attention. The number of heads is read from the projection, so a split one has fewer."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.head_dim = config.hidden // config.n_heads
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden)
        self.proj = nn.Linear(config.hidden, config.hidden)
        self.attend = Attend(causal=True)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Take and return (batch, seq, hidden); with a cache, of the positions that follow those in it."""
        qkv = self.qkv(x)  # (batch, seq', 3 heads head_dim); seq' > seq under sequence parallelism
        # Taken apart before heads and seq change places: so backward puts the three gradients together in one copy.
        q, k, v = (x.transpose(1, 2) for x in qkv.unflatten(-1, (-1, 3, self.head_dim)).unbind(-2))
        y = self.attend(q, k, v) if cache is None else cache.attend(self, q, k, v)  # (batch, heads, seq', head_dim)
        return self.proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with GELU between them, four times as wide in the middle."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden, 4 * config.hidden)
        self.down = nn.Linear(4 * config.hidden, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (batch, seq, hidden)."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """One layer of the transformer: attention, then an MLP, each after a norm and added to the residual stream."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Take and return the residual stream (batch, seq, hidden)."""
        x = x + self.attn(self.norm1(x), cache)
        return x + self.mlp(self.norm2(x))


class GPT2(nn.Module, Sequence):
    """The whole model, or the part of it that a pipeline stage keeps (see paralab.models.spec, rule 2)."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.embed = Embed(config)
        self.blocks = nn.ModuleDict({str(i): Block(config) for i in range(config.n_layers)})
        self.norm = nn.LayerNorm(config.hidden)
        self.head = LinearCrossEntropy(
            hidden=config.hidden, vocab_size=config.vocab_size, padded_vocab=config.padded_vocab
        )
        self.head.weight = self.embed.tokens.weight

    def forward(self, x: Tensor, *, targets: Tensor | None = None) -> Tensor:
        """Take tokens (batch, seq) int64, or the hidden state (batch, seq, hidden) of the stage before.

        Returns: the mean loss () in fp32 with targets (batch, seq) int64, logits (batch, seq, vocab_size) without, or
        the hidden state for the stage that follows.
        """
        if self.embed is not None:
            x = self.embed(x)
        for block in self.blocks.values():
            x = block(x)
        if self.head is None:
            return x
        return self.head(self.norm(x), None if targets is None else self.take(targets, 1))

    def next_logits(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Take tokens (batch, new) int64 that follow those in a cache; return logits (batch, vocab) after the last."""
        x = self.embed(tokens, start=cache.length)
        for block in self.blocks.values():
            x = block(x, cache)
        return self.head(self.norm(x[:, -1]))


def init(config: GPT2Config, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Initialise a full tensor of any shape: N(0, 0.02), and for the layers that add to the residual stream less.

    Their standard deviation is divided by sqrt(2 layers) (GPT-2, section 2.3).
    """
    kind = name.rsplit(".", 2)[-2:]
    if kind[0].startswith("norm") and kind[1] == "weight":
        tensor.fill_(1.0)
    elif kind[1] == "bias":
        tensor.zero_()
    else:
        std = 0.02 / math.sqrt(2 * config.n_layers) if kind[0] in ("proj", "down") else 0.02
        tensor.normal_(0.0, std, generator=generator)
        if name in ("embed.tokens.weight", "head.weight"):
            tensor[config.vocab_size :].zero_()


def flops(config: GPT2Config) -> Flops:
    """Count 6 N + 12 L H S a token, attention in full (PaLM, Chowdhery et al. 2022, appendix B).

    N counts the weights of matrix products: blocks and output layer, no position table, biases or norms.
    """
    weights = 12 * config.n_layers * config.hidden**2 + config.vocab_size * config.hidden
    attention = 12 * config.n_layers * config.hidden * config.seq_len
    return Flops(per_sample=config.seq_len * (6 * weights + attention), formula="6N+12LHS")


def example(config: GPT2Config, batch_size: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return zeros in the form of a batch: ((tokens,), targets), both (batch, seq_len) int64."""
    tokens = torch.zeros(batch_size, config.seq_len, dtype=torch.int64)
    return (tokens,), tokens


_PLAN: dict[str, Style] = {
    "embed.tokens": "vocab_embedding",
    "embed": "scatter_sequence",
    "blocks.*.norm?": "sequence",
    "blocks.*.attn.qkv": "column",
    "blocks.*.attn.proj": "row",
    "blocks.*.mlp.up": "column",
    "blocks.*.mlp.down": "row",
    "norm": "sequence",
    "head": "vocab_loss",
}

SIZES = {
    "tiny": GPT2Config(n_layers=8, hidden=32, n_heads=4, seq_len=16, vocab_size=257, tokenizer="bytes"),
    "nano": GPT2Config(n_layers=4, hidden=128, n_heads=4, seq_len=128),
    "small": GPT2Config(n_layers=6, hidden=384, n_heads=6, seq_len=256),
    "124m": GPT2Config(n_layers=12, hidden=768, n_heads=12),
    "355m": GPT2Config(n_layers=24, hidden=1024, n_heads=16),
    "774m": GPT2Config(n_layers=36, hidden=1280, n_heads=20),
    "1.5b": GPT2Config(n_layers=48, hidden=1600, n_heads=25),
    # GPT-3, Brown et al. 2020, table 2.1 (its 13B has hidden 5140 there; 5120 = 40 x 128 is what divides).
    "gpt3-125m": GPT2Config(n_layers=12, hidden=768, n_heads=12, seq_len=2048),
    "gpt3-350m": GPT2Config(n_layers=24, hidden=1024, n_heads=16, seq_len=2048),
    "gpt3-760m": GPT2Config(n_layers=24, hidden=1536, n_heads=16, seq_len=2048),
    "gpt3-1.3b": GPT2Config(n_layers=24, hidden=2048, n_heads=16, seq_len=2048),  # printed with 24 heads of 128
    "gpt3-2.7b": GPT2Config(n_layers=32, hidden=2560, n_heads=32, seq_len=2048),
    "gpt3-6.7b": GPT2Config(n_layers=32, hidden=4096, n_heads=32, seq_len=2048),
    "gpt3-13b": GPT2Config(n_layers=40, hidden=5120, n_heads=40, seq_len=2048),
    "gpt3-175b": GPT2Config(n_layers=96, hidden=12288, n_heads=96, seq_len=2048),
}

_CUSTOM = re.compile(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)(?:v([1-9]\d*))?")


def custom_size(text: str) -> GPT2Config | None:
    """Read a size such as 12x768x12 (layers, width, heads) or 12x768x12v50304 (and vocabulary); None for another form.

    Raises: ValueError when the heads do not divide the width.
    """
    match = _CUSTOM.fullmatch(text)
    if match is None:
        return None
    n_layers, hidden, n_heads = map(int, match.groups()[:3])
    vocab_size = int(match[4] or 50_257)
    return GPT2Config(n_layers, hidden, n_heads, vocab_size=vocab_size, tokenizer=tokenizer_of(vocab_size))


def size_of(config: GPT2Config) -> str:
    """Return the preset with the parameters of a config, or the form that `custom_size` reads."""
    for name, preset in SIZES.items():
        if replace(config, seq_len=preset.seq_len) == preset:
            return name
    vocabulary = "" if config.vocab_size == 50_257 else f"v{config.vocab_size}"
    return f"{config.n_layers}x{config.hidden}x{config.n_heads}{vocabulary}"


SPEC = ModelSpec(
    name="gpt2",
    sizes=SIZES,
    custom_size=custom_size,
    size_of=size_of,
    custom_form="LAYERSxWIDTHxHEADS such as 12x768x12, with v50304 after it for another vocabulary",
    default_size="nano",
    tiny_size="tiny",
    build=GPT2,
    init=init,
    example=example,
    n_blocks=lambda config: config.n_layers,
    with_blocks=lambda config, n: replace(config, n_layers=n),
    first=("embed",),
    last=("norm", "head"),
    flops=flops,
    data=lambda config: "alice",
    unit=lambda config: "tokens",
    units_per_sample=lambda config: config.seq_len,
    tensor_plan=lambda config: _PLAN,
    tensor_divides=lambda config: {"n_heads": config.n_heads},
    sequence_parallel=True,
    sequence=lambda config: SequenceShape(config.seq_len, config.n_heads, config.n_heads, causal=True),
    hugging_face=lambda: import_module("paralab.models.gpt2_hf"),
    tied={"head.weight": "embed.tokens.weight"},
)
