"""Modules of every kind that a program may bring, each with what `parallelize` is told of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab import Pipeline
from paralab.models.sequence import Attend, Sequence, SequenceShape

ROWS, SEQUENCE, LONGER, WORDS, WIDTH = 8, 6, 8, 24, 16
Batch = Any


class Block(nn.Module):
    """A layer of a residual network, without kinks."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Plain(nn.Module):
    """Words in, words out: an embedding, blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(4))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Tied(Plain):
    """And with a buffer that it computes nothing with."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ranks_of_words", torch.arange(WORDS))
        self.head.weight = self.embed.weight


class BothEnds(Plain):
    """One module used at both ends, with no second name for its weight."""

    def __init__(self) -> None:
        super().__init__()
        del self.head

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.embed.weight)


class Repeated(nn.Module):
    """One block applied several times, under one name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(WORDS, WIDTH), Block(), nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        for _ in range(3):
            x = self.block(x)
        return self.head(x)


class Alternating(nn.Module):
    """Two blocks in a list of four, each there twice."""

    def __init__(self) -> None:
        super().__init__()
        one, other = Block(), Block()
        self.embed, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.layers = nn.ModuleList([one, other, one, other])

    forward = Plain.forward

    def norm(self, x: Tensor) -> Tensor:
        return x


class Turning(nn.Module):
    """A block that turns pairs of features by the place in the sequence, with frequencies that are not saved."""

    inv_freq: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("inv_freq", 100.0 ** -(torch.arange(WIDTH // 2) / WIDTH), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.scale = torch.full((WIDTH,), 0.5)  # a plain tensor

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        angles = torch.arange(x.shape[1], device=x.device)[:, None] * self.inv_freq
        a, b = self.mix(x).chunk(2, dim=-1)
        turned = torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1)
        return x + turned * self.scale.to(x)


class Buffers(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Turning() for _ in range(4))


class Dropping(Plain):
    """Dropout in and between the blocks; what was dropped last can be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DroppingBlock() for _ in range(4))


class DroppingBlock(Block):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.2)
        self.last = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        kept = self.dropout(torch.ones_like(x))
        self.last = kept[0, 0]
        return x * kept


class BatchNormed(nn.Module):
    """Images through convolutions and batch norms: statistics over the samples that are together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.stages = nn.Sequential(*(nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)) for _ in "abcd"))
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images)).tanh().mean((2, 3)))


class Frozen(Plain):
    """An embedding, a whole block and single tensors of others that are not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.embed.requires_grad_(False)
        self.layers[0].requires_grad_(False)
        self.layers[1].up.weight.requires_grad_(False)
        self.layers[3].norm.requires_grad_(False)
        self.norm.bias.requires_grad_(False)


class Adapted(Plain):
    """All is frozen but the last layer and a low-rank addition to one before."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.head.requires_grad_(True)
        self.layers[2].down.bias.requires_grad_(True)


class Masked(nn.Module):
    """Blocks that take two arguments more, a mask and angles, and return a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(WORDS, WIDTH), nn.ModuleDict({n: MaskedBlock() for n in "abcd"})
        self.register_buffer("angles", torch.linspace(0, 1, SEQUENCE)[:, None], persistent=False)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        x, total = self.embed(words), torch.zeros((), device=words.device)
        for layer in self.layers.values():
            x, total = layer(x, mask.to(x), self.angles, total=total)
        return self.head(x) + total


class MaskedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor, angles: Tensor, *, total: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (self.qkv(x) * angles.cos()).chunk(3, dim=-1)
        x = x + self.out(((q @ k.mT).softmax(-1) * mask[:, None, :]) @ v)
        return x, total + x.mean((1, 2), keepdim=True)


def _masked_block(module: nn.Module, block: nn.Module, x: Tensor, mask: Tensor, total: Tensor) -> Any:
    x, total = block(x, mask, module.angles, total=total)
    return x, mask, total


MASKED_STAGES = Pipeline(
    before=lambda m, words, mask: (x := m.embed(words), mask.to(x), x.new_zeros(len(x), 1, 1)),
    block=_masked_block,
    after=lambda m, x, mask, total: m.head(x) + total,
)


class Named(Plain):
    """Keyword inputs, and a loss of its own in an output with `.loss`, as transformers have it."""

    def forward(self, input_ids: Tensor, labels: Tensor, weights: dict[str, Tensor]) -> Any:  # type: ignore[override]
        logits = super().forward(input_ids)
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        return SimpleNamespace(loss=(each.mean(1) * weights["rows"]).mean(), logits=logits)


class OwnLoss(Plain):
    """Inputs that are their own targets, and a loss that is all that comes out."""

    def forward(self, words: Tensor) -> Tensor:
        return words_loss(super().forward(words[:, :-1]), words[:, 1:])


class TwoTowers(nn.Module):
    """Modules in a dict of lists of sequences; two inputs in a nest; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(
            {
                side: nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(2))
                for side in ("left", "right")
            }
        )
        self.gain = nn.Parameter(torch.ones(3, 1))

    def forward(self, pair: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for side, x in (("left", pair[0]), ("right", pair[1]["x"])):
            for layer in cast(nn.ModuleList, self.towers[side]):
                x = layer(x)
            out[side] = x
        return out | {"both": self.gain.mean() * out["left"] * out["right"]}


class Routed(Plain):
    """One of two experts takes a sample, as its first word says: a data rank may have no sample for one of them.

    And a parameter that is a number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.layers = nn.ModuleList(RoutedBlock() for _ in range(2))
        self.never = nn.Linear(WIDTH, WIDTH)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        for layer in self.layers:
            x = layer(x, words[:, 0] % 2)
        return self.head(self.norm(x)) * self.temperature


class RoutedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts, self.spare = nn.ModuleList(Block() for _ in range(2)), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for i, block in enumerate(self.experts):
            if (expert == i).any():
                out[expert == i] = block(x[expert == i])
        return out


class AttendingBlock(Block):
    """A layer with attention over all positions before it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.attend = nn.Linear(WIDTH, 3 * WIDTH), Attend(causal=True)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)  # (batch, heads, seq, head_dim) each
        return super().forward(x + self.attend(q, k, v).transpose(1, 2).flatten(2))


class Attending(Plain, Sequence):
    """Words of which ranks share the positions, with a table of these."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AttendingBlock() for _ in range(2))
        self.places = nn.Parameter(torch.randn(LONGER, WIDTH))

    def enter(self, words: Tensor) -> Tensor:
        return self.embed(self.take(words, 1)) + self.take(self.places, 0)

    def forward(self, words: Tensor) -> Tensor:
        x = self.enter(words)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Experts(nn.Module):
    """Four layers, each for the rows that come to it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, WIDTH, WIDTH) / 4), nn.Parameter(torch.zeros(4, WIDTH))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        parts = rows.split(counts.tolist())
        return torch.cat([(x @ w + b).tanh() for x, w, b in zip(parts, self.weight, self.bias, strict=True)])


class MixedBlock(AttendingBlock):
    """A layer whose rows each take the expert that a table of the program's own says."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.experts = nn.Linear(WIDTH, 4), Experts()

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        rows, weights = x.flatten(0, 1), self.score(x).flatten(0, 1).softmax(-1)
        chosen = weights.argmax(-1)
        order = chosen.argsort(stable=True)
        out = self.experts(rows[order], chosen.bincount(minlength=4))
        back = torch.zeros_like(out).index_copy(0, order, out) * weights.gather(1, chosen[:, None])
        return x + back.view_as(x)


class Mixed(Attending):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MixedBlock() for _ in range(2))


def mixtral() -> nn.Module:
    """Return a Mixtral as transformers has it, whose outputs have `.logits`, computed in a way that takes fp64."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = MixtralForCausalLM(MixtralConfig(**sizes, vocab_size=WORDS, num_key_value_heads=2, num_local_experts=4))
    model.set_experts_implementation("batched_mm")
    return model


class Bare(nn.Module):
    """No blocks at all, and parameters of its own: a vector, and one of size 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 3) / 3), nn.Parameter(torch.zeros(3))
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight + self.bias) * self.temperature


# --- batches and losses


def words(generator: torch.Generator) -> Batch:
    """Return inputs and targets (ROWS, SEQUENCE), int64."""
    drawn = torch.randint(WORDS, (ROWS, SEQUENCE + 1), generator=generator)
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()


def longer(generator: torch.Generator) -> Batch:
    """Return inputs and targets (ROWS, LONGER), int64."""
    drawn = torch.randint(WORDS, (ROWS, LONGER + 1), generator=generator)
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()


def words_loss(out: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), targets.flatten())


def images(generator: torch.Generator) -> Batch:
    return torch.randn(ROWS, 1, 6, 6, generator=generator), torch.randint(5, (ROWS,), generator=generator)


def masked(generator: torch.Generator) -> Batch:
    inputs, targets = words(generator)
    return (inputs, torch.rand(ROWS, SEQUENCE, generator=generator) > 0.2), targets


def named(generator: torch.Generator) -> Batch:
    inputs, targets = words(generator)
    rows = torch.rand(ROWS, generator=generator)
    return {"input_ids": inputs, "labels": targets, "weights": {"rows": rows}}


def towers(generator: torch.Generator) -> Batch:
    x, y, z = torch.randn(3, ROWS, WIDTH, generator=generator)
    return ((x, {"x": y}),), {"left": z, "right": (z.sum(1), -z)}


def towers_loss(out: dict[str, Tensor], targets: dict[str, Any]) -> dict[str, Tensor]:
    total, right = targets["right"]
    return {
        "left": F.mse_loss(out["left"], targets["left"]),
        "right": F.mse_loss(out["right"], right) + F.mse_loss(out["both"].sum(1), total),
    }


def routed(generator: torch.Generator) -> Batch:
    """Return a batch whose first half takes the first expert alone."""
    inputs, targets = words(generator)
    inputs[: ROWS // 2, 0] = 0
    return inputs, targets


def points(generator: torch.Generator) -> Batch:
    return torch.randn(ROWS, 5, generator=generator), torch.randn(ROWS, 3, generator=generator)


# --- the kinds

SHAPE = SequenceShape(LONGER, heads=4, kv_heads=4, causal=True)
DATA = ("dp2", "dp2/zero1", "dp2/zero2", "dp2/zero3")
PIPELINE = ("pp2/1f1b/mb2", "pp2/interleaved/mb2")
EVERY = (*DATA, "dp4/zero3/shard2", "tp2", "dp2.tp2/zero3", *PIPELINE, "dp2.pp2/mb2")
BLOCKS: Mapping[str, Any] = {"layers.*.up": "column", "layers.*.down": "row"}
ENDS = Pipeline(before="embed", after=("norm", "head"))
IN_STAGES: Mapping[str, Any] = {"tensor": BLOCKS, "pipeline": ENDS}


@dataclass(frozen=True)
class Kind:
    """A module with what comes with it. apart: whether samples that are not together see different statistics."""

    make: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch] = words
    loss: Callable[..., Any] | None = words_loss
    options: Mapping[str, Any] = field(default_factory=lambda: IN_STAGES)
    layouts: tuple[str, ...] = (*DATA, "tp2", *PIPELINE)
    apart: bool = False


KINDS: Mapping[str, Kind] = {
    "plain": Kind(Plain, layouts=EVERY),
    "tied": Kind(Tied, layouts=EVERY),
    "both-ends": Kind(
        BothEnds,
        options={
            "tensor": BLOCKS,
            "pipeline": Pipeline(before="embed", after=lambda m, x: F.linear(m.norm(x), m.embed.weight)),
        },
        layouts=("dp2/zero3", *PIPELINE, "dp2.pp2/mb2"),
    ),
    "repeated": Kind(
        Repeated, options={"tensor": {"block.up": "column", "block.down": "row"}}, layouts=(*DATA, "dp2.tp2/zero3")
    ),
    "alternating": Kind(Alternating, options={"tensor": BLOCKS}, layouts=(*DATA, "dp2.tp2/zero3")),
    "buffers": Kind(Buffers, options={"pipeline": ENDS}, layouts=(*DATA, *PIPELINE, "dp2.pp2/mb2")),
    "batch-norm": Kind(
        BatchNormed,
        batch=images,
        loss=F.cross_entropy,
        options={"pipeline": Pipeline(before="stem", after=lambda m, x: m.head(x.tanh().mean((2, 3))))},
        layouts=(*DATA, *PIPELINE, "dp2.pp2/mb2"),
        apart=True,
    ),
    "frozen": Kind(Frozen, layouts=EVERY),
    "adapted": Kind(Adapted),
    "masked": Kind(Masked, batch=masked, options={"pipeline": MASKED_STAGES}, layouts=(*DATA, *PIPELINE)),
    "named": Kind(Named, batch=named, loss=None, layouts=(*DATA, "tp2")),
    "attending": Kind(
        Attending,
        batch=longer,
        options={"sequence": SHAPE, "pipeline": Pipeline(before=Attending.enter, after=("norm", "head"))},
        layouts=("cp2", "dp2.cp2/zero3", "cp4/ulysses", "cp2.pp2/1f1b/mb2"),
    ),
    "towers": Kind(TwoTowers, batch=towers, loss=towers_loss, options={}, layouts=DATA),
    "routed": Kind(
        Routed,
        batch=routed,
        options={
            "unused_parameters": True,
            "tensor": {"layers.*.experts.*.up": "column", "layers.*.experts.*.down": "row"},
        },
        layouts=(*DATA, "dp4/zero3/shard2", "dp2.tp2"),
    ),
    "own-loss": Kind(OwnLoss, batch=lambda g: words(g)[0], loss=None, layouts=("dp2", "dp2/zero3", "tp2")),
    "bare": Kind(Bare, batch=points, loss=F.mse_loss, options={}, layouts=(*DATA, "dp4/zero3/shard2")),
    "mixtral": Kind(
        mixtral,
        loss=lambda out, targets: words_loss(out.logits, targets),
        options={"experts": "model.layers.*.mlp.experts"},
        layouts=("dp2.ep2", "dp4.ep2/zero3"),
    ),
    "mixed": Kind(
        Mixed,
        batch=longer,
        options={"sequence": SHAPE, "experts": "layers.*.experts"},
        layouts=("dp2.ep2", "dp4.ep2/zero3", "dp2.ep2.cp2"),
    ),
}
DROPPING = Kind(Dropping)
