"""What decoders of text have in common: embedding, blocks, norm and output layer, one after the other.

A model brings the modules; what `forward` does with them, how their values are drawn and how tensor ranks share them is
the same for all whose modules have the same names.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paralab.models.cross_entropy import LinearCrossEntropy
from paralab.models.generation import Cache
from paralab.models.sequence import Sequence
from paralab.models.spec import Style

PLAN: dict[str, Style] = {
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


class DecoderConfig(Protocol):
    """What a config says of any decoder."""

    @property
    def n_layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def padded_vocab(self) -> int: ...


class Embed(nn.Module, Sequence):
    """Token embeddings."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.padded_vocab, config.hidden)

    def forward(self, tokens: Tensor, *, start: int = 0) -> Tensor:
        """Take tokens (batch, seq) int64; return (batch, seq, hidden), or the positions of it that this rank has.

        start: position of the first token, for embeddings that tell positions apart.
        """
        return self.tokens(self.take(tokens, 1))


class Decoder(nn.Module, Sequence):
    """The whole model, or the part of it that a pipeline stage keeps (see paralab.models.spec, rule 2).

    block: makes one block. norm: before the output layer. tied: whether the output layer is the embedding.
    """

    def __init__(
        self, config: DecoderConfig, *, embed: Embed, block: Callable[[Any], nn.Module], norm: nn.Module, tied: bool
    ) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleDict({str(i): block(config) for i in range(config.n_layers)})
        self.norm = norm
        self.head = LinearCrossEntropy(
            hidden=config.hidden, vocab_size=config.vocab_size, padded_vocab=config.padded_vocab
        )
        if tied:
            self.head.weight = embed.tokens.weight

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


def init(config: DecoderConfig, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Initialise a full tensor of any shape: N(0, 0.02), and for the layers that add to the residual stream less.

    Their standard deviation is divided by sqrt(2 layers) (GPT-2, section 2.3). Norms begin at 1, biases at 0.
    """
    *_, module, kind = name.split(".")
    if kind == "bias":
        tensor.zero_()
    elif module.startswith("norm"):
        tensor.fill_(1.0)
    else:
        std = 0.02 / math.sqrt(2 * config.n_layers) if module in ("proj", "down") else 0.02
        tensor.normal_(0.0, std, generator=generator)
        if name in ("embed.tokens.weight", "head.weight"):
            tensor[config.vocab_size :].zero_()


def example(config: DecoderConfig, batch_size: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return zeros in the form of a batch: ((tokens,), targets), both (batch, seq_len) int64."""
    tokens = torch.zeros(batch_size, config.seq_len, dtype=torch.int64)
    return (tokens,), tokens
