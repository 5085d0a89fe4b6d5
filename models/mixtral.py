"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Llama with a mixture of experts in the place of each MLP.

Attention, norms, embedding and output layer are those of `paralab.models.llama`; who goes where is in
`paralab.models.routing`. The experts of a layer are two tensors whose first dim counts them, so that any contiguous
split over it leaves whole experts, and one of the dim after it leaves smaller experts of the same form (gate and up are
ordered by part, as in Llama's MLP).

The losses of the routers are added to the mean cross entropy in training alone. They travel from block to block beside
the residual stream, one number for each sequence, so that pipeline stages hand them on.
"""

import math
import re
from dataclasses import dataclass, replace
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab.models import decoder, llama
from paralab.models.cross_entropy import local
from paralab.models.decoder import Decoder, Embed
from paralab.models.generation import Cache
from paralab.models.llama import MLP, Attention, LlamaConfig
from paralab.models.routing import Router, choices, sizes_of
from paralab.models.sequence import SequenceShape
from paralab.models.sizes import dims, letters, numbers, preset_of, whole, written
from paralab.models.spec import Flops, ModelSpec, Style

VOCAB_SIZE = 32_000
ROPE_THETA = 1_000_000.0


@dataclass(frozen=True)
class MixtralConfig(LlamaConfig):
    """Sizes of one model. ffn: width of one expert. shared_ffn: of one that every token meets, 0 where there is none.

    capacity, balance, z: see `MixtureConfig`. The coefficients are those of Switch Transformer (Fedus et al. 2021,
    arXiv:2101.03961, section 2.2) and ST-MoE (section 3.3).
    Raises: ValueError when there are fewer experts than a token goes to, or places for no token.
    """

    vocab_size: int = VOCAB_SIZE
    rope_theta: float = ROPE_THETA
    n_experts: int = 8
    top_k: int = 2
    shared_ffn: int = 0
    capacity: float | None = None
    balance: float = 0.01
    z: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.top_k <= self.n_experts:
            raise ValueError(f"top_k={self.top_k} is not between 1 and n_experts={self.n_experts}")
        if self.capacity is not None and self.capacity <= 0:
            raise ValueError(f"capacity={self.capacity} leaves no place for any token")

    @property
    def experts_per_token(self) -> int:
        return self.top_k


class Experts(nn.Module):
    """Gated MLPs, one for each expert, over rows that are sorted by expert.

    `up` is (experts, 2 ffn, hidden), `down` (experts, hidden, ffn); how many experts there are is read from them.
    """

    def __init__(self, config: MixtralConfig) -> None:
        super().__init__()
        self.part = config.ffn // config.ffn_parts
        self.up = nn.Parameter(torch.empty(config.n_experts, 2 * config.ffn, config.hidden))
        self.down = nn.Parameter(torch.empty(config.n_experts, config.hidden, config.ffn))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Take and return rows (rows, hidden): counts[0] of them are of the first expert, and so on. counts: int64."""
        parts = rows.split(sizes_of(counts, len(rows)))
        weights = zip(local(self.up).unbind(), local(self.down).unbind(), strict=True)
        return torch.cat([self._expert(part, up, down) for part, (up, down) in zip(parts, weights, strict=True)])

    def _expert(self, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gate, value = F.linear(x, up).unflatten(-1, (-1, 2, self.part)).unbind(-2)  # (rows, parts, ffn / parts)
        return F.linear((F.silu(gate) * value).flatten(-2), down)


class Mixture(nn.Module):
    """The experts of a layer: each token passes through those that the router chooses."""

    def __init__(self, config: MixtralConfig) -> None:
        super().__init__()
        self.config = config
        self.router = Router(config)
        self.experts = Experts(config)
        self.shared = MLP(replace(config, ffn=config.shared_ffn)) if config.shared_ffn else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Take (batch, seq, hidden); return the same, and the router's losses (batch,)."""
        routing = self.router(x)
        y = self._combined(x.flatten(0, 1), routing.experts.flatten(), routing.weights.flatten(0, 1)).view_as(x)
        return (y if self.shared is None else y + self.shared(x)), routing.loss

    def _combined(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Take (tokens, hidden), experts (tokens top_k), weights (tokens, top_k); return (tokens, hidden)."""
        count, top_k = self.config.n_experts, self.config.top_k
        counts = choices(chosen, count + 1)[:count]  # without those that found no place
        order = chosen.argsort(stable=True)
        if self.config.capacity is not None:
            order = order[: sum(sizes_of(counts, len(order)))]
        out = self.experts(tokens[order // top_k], counts)
        by_token = out.new_zeros(len(chosen), tokens.shape[1]).index_copy(0, order, out)
        return (by_token.unflatten(0, (-1, top_k)) * weights[..., None]).sum(dim=1)


class Block(nn.Module):
    """One layer of the transformer: attention, then a mixture, each after a norm and added to the residual stream."""

    def __init__(self, config: MixtralConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.mixture = Mixture(config)

    def forward(self, x: Tensor, cache: Cache | None = None) -> tuple[Tensor, Tensor]:
        """Take the residual stream (batch, seq, hidden); return it, and the router's losses (batch,)."""
        x = x + self.attn(self.norm1(x), cache)
        y, loss = self.mixture(self.norm2(x))
        return x + y, loss


class Mixtral(Decoder):
    """The whole model, or the part of it that a pipeline stage keeps (see paralab.models.spec, rule 2)."""

    def __init__(self, config: MixtralConfig) -> None:
        norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        super().__init__(config, embed=Embed(config), block=Block, norm=norm, tied=config.tied)

    def forward(  # type: ignore[override]
        self, x: Tensor, routed: Tensor | None = None, *, targets: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Take tokens (batch, seq) int64, or what the stage before returned: (batch, seq, hidden) and (batch,).

        routed: the losses of the routers so far. Returns: the mean loss () in fp32 with targets (batch, seq) int64,
        logits (batch, seq, vocab_size) without, or the hidden state and `routed` for the stage that follows.
        """
        if self.embed is not None:
            x = self.embed(x)
        for block in self.blocks.values():
            x, loss = block(x)
            routed = loss if routed is None else routed + loss
        if self.head is None:
            assert routed is not None, "a stage has a block"
            return x, routed
        out = self.head(self.norm(x), None if targets is None else self.take(targets, 1))
        return out if targets is None or routed is None or not self.training else out + routed.mean()

    def next_logits(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Take tokens (batch, new) int64 that follow those in a cache; return logits (batch, vocab) after the last."""
        x = self.embed(tokens)
        for block in self.blocks.values():
            x, _ = block(x, cache)
        return self.head(self.norm(x[:, -1]))


def init(config: MixtralConfig, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Initialise a full tensor of any shape as of any decoder, each expert as an MLP."""
    parts = name.split(".")
    if parts[-2] != "experts":
        decoder.init(config, name, tensor, generator)
        return
    std = 0.02 / math.sqrt(2 * config.n_layers) if parts[-1] == "down" else 0.02
    tensor.normal_(0.0, std, generator=generator)


def parameters(config: MixtralConfig, *, active: bool = False) -> int:
    """Count the parameters, without padding of the vocabulary; active: those that a token meets."""
    tables = (1 if config.tied else 2) * config.vocab_size * config.hidden
    norms = (2 * config.n_layers + 1) * config.hidden
    return config.n_layers * _products(config, active=active) + tables + norms


def _products(config: MixtralConfig, *, active: bool) -> int:
    """Count the weights of matrix products in a block."""
    attention = 2 * config.hidden * config.head_dim * (config.n_heads + config.n_kv_heads)
    widths = (config.top_k if active else config.n_experts) * config.ffn + config.shared_ffn
    return attention + 3 * config.hidden * widths + config.hidden * config.n_experts


def flops(config: MixtralConfig) -> Flops:
    """Count 6 N + 12 L H S a token, attention in full (PaLM, Chowdhery et al. 2022, appendix B).

    N counts the weights of matrix products that a token meets, router included: blocks and output layer, no embedding
    or norms. Of tokens that lose their places it counts what they would have met.
    """
    weights = config.n_layers * _products(config, active=True) + config.vocab_size * config.hidden
    products = 12 * config.n_layers * config.hidden * config.seq_len  # of queries and keys, of weights and values
    return Flops(per_sample=config.seq_len * (6 * weights + products), formula="6N+12LHS")


_PLAN: dict[str, Style] = {
    **{pattern: style for pattern, style in decoder.PLAN.items() if ".mlp." not in pattern},
    "blocks.*.mixture": "whole_sequence",
    "blocks.*.mixture.experts": "experts",
    "blocks.*.mixture.shared.up": "column",
    "blocks.*.mixture.shared.down": "row",
}


def tensor_plan(config: MixtralConfig) -> dict[str, Style]:
    """Return how tensor ranks share the layers: every rank routes every token, and has a part of every expert."""
    return {pattern: style for pattern, style in _PLAN.items() if config.shared_ffn or ".shared." not in pattern}


def tensor_divides(config: MixtralConfig) -> dict[str, int]:
    """Return what a tensor degree has to divide, by name."""
    sizes = {"n_kv_heads": config.n_kv_heads, "ffn": config.ffn}
    return sizes | ({"shared_ffn": config.shared_ffn} if config.shared_ffn else {})


SIZES = {
    "tiny": MixtralConfig(8, 32, 8, 4, ffn=24, seq_len=16, vocab_size=257, tokenizer="bytes"),
    # of our own: as many rows as the tokenizer of the package has tokens
    "nano": MixtralConfig(4, 64, 4, 2, ffn=96, seq_len=128, vocab_size=50_257),
    # https://huggingface.co/mistralai/Mixtral-8x7B-v0.1, config.json
    "8x7b": MixtralConfig(32, 4096, 32, 8, ffn=14336, seq_len=32768),
}

_LETTERS = {
    "f": "ffn",
    "h": "shared_ffn",
    "c": "capacity",
    "b": "balance",
    "z": "z",
    "v": "vocab_size",
    "t": "rope_theta",
    "n": "norm_eps",
}
_FORM = re.compile(
    f"{dims('n_layers', 'hidden', 'n_heads')}(?:/{whole('n_kv_heads')})?e{whole('n_experts')}(?:/{whole('top_k')})?"
    f"{letters(MixtralConfig, _LETTERS)}(?P<tied>tied)?"
)


def custom_size(text: str) -> MixtralConfig | None:
    """Read a size such as 16x2048x32/8e8/2: layers, width, heads, and those of keys; experts, and those of a token.

    After it, in this order, what differs from Mixtral: f8192, the width of an expert (else 3.5 times the width); h8192,
    that of a shared expert; c1.25, `capacity`; b0.001 and z0, the coefficients; v50304, the vocabulary; t10000,
    rope_theta; n1e-6, norm_eps; tied.
    Returns: None for another form. Raises: ValueError when the numbers do not fit together.
    """
    match = _FORM.fullmatch(text)
    return None if match is None else llama.of_numbers(MixtralConfig, numbers(match, MixtralConfig))


def size_of(config: MixtralConfig) -> str:
    """Return the preset with the parameters of a config, or the form that `custom_size` reads."""
    words = written(config, llama.of_numbers(MixtralConfig, llama.dimensions(config)), _LETTERS)
    heads, experts = f"{config.n_heads}/{config.n_kv_heads}", f"e{config.n_experts}/{config.top_k}"
    custom = f"{config.n_layers}x{config.hidden}x{heads}{experts}{words}{'tied' if config.tied else ''}"
    return preset_of(config, SIZES) or custom


SPEC = ModelSpec(
    name="mixtral",
    sizes=SIZES,
    custom_size=custom_size,
    size_of=size_of,
    custom_form="LAYERSxWIDTHxHEADS/KVHEADSeEXPERTS/TOPK such as 16x2048x32/8e8/2, with f8192, c1.25 and v50304 after"
    " it for another width of the experts, a capacity and another vocabulary",
    default_size="nano",
    tiny_size="tiny",
    build=Mixtral,
    init=init,
    example=decoder.example,
    n_blocks=lambda config: config.n_layers,
    with_blocks=lambda config, n: replace(config, n_layers=n),
    first=("embed",),
    last=("norm", "head"),
    flops=flops,
    data=lambda config: "alice",
    tensor_plan=tensor_plan,
    tensor_divides=tensor_divides,
    sequence_parallel=True,
    sequence=lambda config: SequenceShape(config.seq_len, config.n_heads, config.n_kv_heads, causal=True),
    experts="blocks.*.mixture.experts",
    smooth=False,  # where two experts have the same probability, the last bit chooses
    hugging_face=lambda: import_module("paralab.models.mixtral_hf"),
)
