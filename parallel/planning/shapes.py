"""The shape of a model as a planner reads it: columns of the contract (docs/planner.md), from the config of a model."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from paralab.axes.check import check_split
from paralab.axes.recompute import attention_of
from paralab.errors import LayoutError, ModelError
from paralab.layout import Layout
from paralab.models import NAMES, SPECS
from paralab.models.configs import C, ModelConfig
from paralab.models.sizes import config_of_size
from paralab.models.spec import ModelSpec
from paralab.planning.stages import WithExperts
from paralab.planning.vocabulary import with_tokenizer

# columns of the contract, and what configs call them, the first one that is there
_NAMES = {
    "layers": ("n_layers", "num_hidden_layers", "n_layer"),
    "hidden": ("hidden", "hidden_size", "n_embd"),
    "heads": ("n_heads", "num_attention_heads", "n_head"),
    "kv_heads": ("n_kv_heads", "num_key_value_heads"),
    "head_dim": ("head_dim",),
    "ffn": ("ffn", "intermediate_size", "n_inner", "ffn_dim"),
    "experts": ("n_experts", "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "experts_per_token": ("experts_per_token", "num_experts_per_tok", "moe_topk", "moe_k"),
    "expert_ffn": ("moe_intermediate_size",),
    "vocab": ("vocab_size",),
    "sequence_length": ("seq_len",),
}
# what models call the experts that every token meets
_SHARED = ("shared", "shared_expert", "shared_experts", "shared_mlp")


@dataclass(frozen=True)
class Trained:
    """A model that paralab trains, as it is named on a command line. words: that name it."""

    spec: ModelSpec
    config: ModelConfig
    words: tuple[str, ...]

    def accepts(self, layout: Layout) -> bool:
        """Return whether it can be trained under a layout."""
        try:
            check_split(layout, spec=self.spec, config=self.config)
        except LayoutError:
            return False
        return True

    @property
    def n_weights(self) -> int:
        """Weights of all its modules; one that two share counts once."""
        return sum(p.numel() for p in self.spec.on_meta(self.config).parameters())

    @property
    def has_attention(self) -> bool:
        """Whether it can recompute attention alone."""
        return bool(attention_of(self.spec.on_meta(self.config)))

    def with_length(self, sequence_length: int) -> "Trained":
        """Return the same model for sequences of another length."""
        if getattr(self.config, "seq_len", sequence_length) == sequence_length:
            return self
        config = replace(self.config, seq_len=sequence_length)
        return Trained(self.spec, config, (*self.words, "--seq-len", str(sequence_length)))


def find(name: str, size: str | None, tokenizer: str | None = None) -> tuple[Trained, dict[str, Any]]:
    """Return a model by what `--model`, `--size` and `--tokenizer` say, and its columns.

    Raises: ConfigError for an unknown one; DataError for a tokenizer that cannot be read; ModelError for a model
    whose shape is not that of one that is predicted.
    """
    spec = SPECS[name]
    size = size or spec.default_size
    config = config_of_size(spec, size)
    config = with_tokenizer(config, tokenizer, spec, size)
    more = () if tokenizer is None else ("--tokenizer", tokenizer)
    words = ("--model", name, "--size", size, *more)
    return Trained(spec, config, words), columns_of(spec, config, size, words)


def columns_of(spec: ModelSpec[C], config: C, size: str, named: Sequence[str]) -> dict[str, Any]:
    """Return the columns of a model: the shape of a transformer of texts, or what was counted of any other model.

    named: the words that name it on a command line. Raises: ModelError for one without blocks.
    """
    try:
        return shape_of(spec, config, size)
    except ModelError:
        from paralab.planning.counted import count

        counted = count(spec, config)
        if not counted.blocks:
            own = "put them into an nn.ModuleList, or " if spec.name not in NAMES else ""
            raise ModelError(
                f"{spec.name} has no repeated layers, which is what a plan divides: {own}measure it with "
                f"paralab bench {shlex.join(named)}"
            ) from None
        as_run = {"framework": "paralab", "tied_embeddings": False}
        return {"model": f"{spec.name} {size}"} | as_run | counted.columns()


def shape_of(spec: ModelSpec[C], config: C, size: str) -> dict[str, Any]:
    """Return the columns of a text model. Raises: ModelError for a model that is no transformer of texts."""
    theirs = getattr(config, "theirs", None)  # of transformers
    found: dict[str, Any] = {"model": f"{spec.name} {size}"}
    for column, names in _NAMES.items():
        for place in (config, theirs):
            value = next((v for name in names if isinstance(v := getattr(place, name, None), int)), None)
            if value is not None:
                found[column] = value
                break
    if config.task != "text" or not {"layers", "hidden", "heads"} <= found.keys():
        raise ModelError(
            f"{spec.name} {size} is not a transformer of texts, which is what step times are predicted for: give "
            "--model gpt2, llama or mixtral, a model of transformers, or --layers, --hidden and the other sizes"
        )
    blocks, outside = _numels(spec, config)
    hidden, heads = found["hidden"], found["heads"]
    head_dim = found.get("head_dim", hidden // heads)
    if found.get("experts"):
        width = found.get("expert_ffn", found.get("ffn", 4 * hidden))
        matrices = max((block.experts for block in blocks), default=0) / (hidden * width * found["experts"])
    else:
        found.pop("expert_ffn", None)  # of a kind of model that may have experts
        attention = 2 * hidden * head_dim * (heads + found.get("kv_heads", heads))
        last = blocks[-1].weights if blocks else 0
        matrices = (last - attention) / (hidden * found.get("ffn", 4 * hidden))
    gated = matrices > 2.5  # three, not two
    if found.get("experts"):
        found |= _beside_experts(blocks, hidden * (3 if gated else 2))
    found |= {
        "gated": gated,
        "norm": "rmsnorm" if gated else "layernorm",
        "position": "learned" if (found.get("sequence_length"), hidden) in outside else "rotary",
        "tied_embeddings": bool(spec.tied_in(config)),
        "framework": "paralab",
    }
    return found


@dataclass(frozen=True)
class _Block:
    """How many weights a block has, and how many of these are of experts, and of experts that every token meets."""

    weights: int
    experts: int
    shared: int


def _numels(spec: ModelSpec[C], config: C) -> tuple[list[_Block], set[tuple[int, ...]]]:
    """Return the weights of each block, and the shapes of the parameters outside of blocks."""
    model, names = spec.on_meta(config), spec.blocks(config)
    inside: set[int] = set()
    blocks = []
    for name in names:
        of = list(model.get_submodule(name).named_parameters())
        inside |= {id(p) for _, p in of}
        parts = [(path.split("."), p.numel()) for path, p in of]
        experts = sum(numel for path, numel in parts if "experts" in path)
        shared = sum(numel for path, numel in parts if any(word in _SHARED for word in path))
        blocks.append(_Block(sum(numel for _, numel in parts), experts, shared))
    return blocks, {tuple(p.shape) for p in model.parameters() if id(p) not in inside}


def _beside_experts(blocks: Sequence[_Block], weights_of_width: int) -> dict[str, int]:
    """Return the columns of what a mixture has beside its experts: shared ones, and layers without any.

    weights_of_width: that a layer has for each element of the inner width of an MLP.
    """
    has = [block.experts > 0 for block in blocks]
    first, dense = next((i for i, one in enumerate(has) if one), 0), has.count(False)
    patterns = [WithExperts(first), *(WithExperts(first + 1 - n, n) for n in range(2, first + 2)), WithExperts(dense)]
    alike = (one for one in patterns if [one.before(i + 1) - one.before(i) == 1 for i in range(len(has))] == has)
    found = next(alike, patterns[-1])  # in any other order they are counted as the first ones
    shared = round(max((block.shared for block in blocks), default=0) / weights_of_width)
    columns = {"shared_ffn": shared, "dense_layers": found.dense_layers, "experts_every": found.every}
    return {name: value for name, value in columns.items() if value != (name == "experts_every")}
