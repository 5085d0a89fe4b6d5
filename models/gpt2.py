"""GPT-2 (Radford et al. 2019) and the GPT-3 family (Brown et al. 2020, table 2.1): config, module, SPEC.

Two choices make one module fit every strategy. Query, key and value come from one linear layer whose rows are
ordered by head (head 0: q, k, v; head 1: q, k, v; ...), so any contiguous split of the rows is a set of whole
heads. The vocabulary is padded to a multiple of 64, so its rows divide over ranks; the padding never enters
the loss.
"""

import re
from dataclasses import dataclass, replace
from importlib import import_module

from torch import Tensor, nn
from torch.nn import functional as F

from paralab.models import decoder
from paralab.models.decoder import Decoder
from paralab.models.generation import Cache
from paralab.models.sequence import Attend, SequenceShape
from paralab.models.sizes import dims, letters, numbers, preset_of, written
from paralab.models.spec import Flops, ModelSpec
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


class Embed(decoder.Embed):
    """Token and position embeddings."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.positions = nn.Embedding(config.seq_len, config.hidden)

    def forward(self, tokens: Tensor, *, start: int = 0) -> Tensor:
        """Take tokens (batch, seq) int64, the first of them at position `start`; return (batch, seq, hidden).

        Of a sequence that several ranks share, return the positions of this one.
        """
        positions = self.positions.weight[start : start + tokens.shape[1]]
        return super().forward(tokens) + self.take(positions, 0)


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


class GPT2(Decoder):
    """The whole model, or the part of it that a pipeline stage keeps (see paralab.models.spec, rule 2)."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config, embed=Embed(config), block=Block, norm=nn.LayerNorm(config.hidden), tied=True)


def flops(config: GPT2Config) -> Flops:
    """Count 6 N + 12 L H S a token, attention in full (PaLM, Chowdhery et al. 2022, appendix B).

    N counts the weights of matrix products: blocks and output layer, no position table, biases or norms.
    """
    weights = 12 * config.n_layers * config.hidden**2 + config.vocab_size * config.hidden
    attention = 12 * config.n_layers * config.hidden * config.seq_len
    return Flops(per_sample=config.seq_len * (6 * weights + attention), formula="6N+12LHS")


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

_LETTERS = {"v": "vocab_size"}
_FORM = re.compile(dims("n_layers", "hidden", "n_heads") + letters(GPT2Config, _LETTERS))


def custom_size(text: str) -> GPT2Config | None:
    """Read a size such as 12x768x12 (layers, width, heads) or 12x768x12v50304 (and vocabulary); None for another form.

    Raises: ValueError when the heads do not divide the width.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    config = GPT2Config(**numbers(match, GPT2Config))
    return replace(config, tokenizer=tokenizer_of(config.vocab_size))


def size_of(config: GPT2Config) -> str:
    """Return the preset with the parameters of a config, or the form that `custom_size` reads."""
    usual = GPT2Config(config.n_layers, config.hidden, config.n_heads)
    custom = f"{config.n_layers}x{config.hidden}x{config.n_heads}{written(config, usual, _LETTERS)}"
    return preset_of(config, SIZES) or custom


SPEC = ModelSpec(
    name="gpt2",
    sizes=SIZES,
    custom_size=custom_size,
    size_of=size_of,
    custom_form="LAYERSxWIDTHxHEADS such as 12x768x12, with v50304 after it for another vocabulary",
    default_size="nano",
    tiny_size="tiny",
    build=GPT2,
    init=decoder.init,
    example=decoder.example,
    n_blocks=lambda config: config.n_layers,
    with_blocks=lambda config, n: replace(config, n_layers=n),
    first=("embed",),
    last=("norm", "head"),
    flops=flops,
    data=lambda config: "alice",
    tensor_plan=lambda config: decoder.PLAN,
    tensor_divides=lambda config: {"n_heads": config.n_heads},
    sequence_parallel=True,
    sequence=lambda config: SequenceShape(config.seq_len, config.n_heads, config.n_heads, causal=True),
    hugging_face=lambda: import_module("paralab.models.gpt2_hf"),
    tied={"head.weight": "embed.tokens.weight"},
)
