"""The baselines of `paralab peers`: GPT-2 training as one would write it without paralab.

Plain on purpose: `nn.Linear`, `F.cross_entropy` on all logits, autocast, AdamW as constructed by default, and torch's
wrappers for several processes, each used the way its documentation shows.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from paralab.axes.initialise import initialise, tie
from paralab.axes.precision import DTYPES
from paralab.data.dataset import Batch
from paralab.models.gpt2 import GPT2Config
from paralab.models.gpt2_hf import to_transformers
from paralab.planning.work import Work


class Block(nn.Module):
    """One layer of the transformer, attention and MLP in one module."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(config.hidden), nn.LayerNorm(config.hidden)
        self.c_attn, self.attn_proj = (
            nn.Linear(config.hidden, 3 * config.hidden),
            nn.Linear(config.hidden, config.hidden),
        )
        self.c_fc, self.mlp_proj = (
            nn.Linear(config.hidden, 4 * config.hidden),
            nn.Linear(4 * config.hidden, config.hidden),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Take and return the residual stream (batch, seq, hidden)."""
        batch, seq, hidden = x.shape
        qkv = self.c_attn(self.ln_1(x)).split(hidden, dim=2)
        q, k, v = (t.view(batch, seq, self.n_heads, -1).transpose(1, 2) for t in qkv)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(y.transpose(1, 2).reshape(batch, seq, hidden))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class PlainGPT2(nn.Module):
    """GPT-2 with all logits held at once, as most write it."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.hidden)
        self.wpe = nn.Embedding(config.seq_len, config.hidden)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layers)])
        self.ln_f = nn.LayerNorm(config.hidden)
        self.lm_head = nn.Linear(config.hidden, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss () of tokens and targets, both (batch, seq) int64."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class HuggingFace(nn.Module):
    """GPT2LMHeadModel with the loss of ours: its own would shift the targets once more."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss () of tokens and targets, both (batch, seq) int64."""
        logits = self.model(input_ids=tokens, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make_step(variant: str, work: Work, device: torch.device) -> Callable[[Batch], float]:
    """Return a function that trains one batch and gives the loss, averaged over ranks."""
    config = work.model_config
    assert isinstance(config, GPT2Config)
    theirs = _transformers_model(work, config)
    model: nn.Module = HuggingFace(theirs) if variant == "transformers" else _plain_model(config, theirs)
    model = model.to(device)
    dtype, lr = DTYPES[work.run.precision], work.run.learning_rate
    clip_norm = math.inf if work.run.clip_norm is None else work.run.clip_norm
    options: dict[str, Any] = {"lr": lr, "betas": work.run.betas, "weight_decay": work.run.weight_decay}
    autocast = work.run.precision != "fp32"
    if variant == "raw FSDP2":
        policy = (
            MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) if autocast else MixedPrecisionPolicy()
        )
        assert isinstance(model, PlainGPT2)
        for block in model.h:
            fully_shard(block, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
        autocast = False
    elif dist.is_initialized():
        model = DistributedDataParallel(model)
    optimizer: torch.optim.Optimizer
    if variant == "ZeroRedundancyOptimizer":
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.AdamW, **options)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), **options)

    def step(batch: Batch) -> float:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=dtype, enabled=autocast):
            loss = model(batch.inputs[0], batch.targets)
        loss.backward()
        if variant == "raw FSDP2":
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            assert isinstance(norm, DTensor)
            norm.full_tensor()
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        loss = loss.detach().float()
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        return loss.item()

    return step


def _transformers_model(work: Work, config: GPT2Config) -> nn.Module:
    """Return their GPT-2 with the weights that ours starts from."""
    model = work.new_model().to_empty(device="cpu")
    tie(model, work.spec.tied_in(config))
    initialise(model, spec=work.spec, config=config, seed=work.run.seed)
    return to_transformers(config, model.state_dict()).train()


def _plain_model(config: GPT2Config, theirs: nn.Module) -> PlainGPT2:
    """Return the hand-written model with the same weights. Their Conv1D holds a linear layer transposed."""
    model = PlainGPT2(config)
    renamed = {"attn.c_attn": "c_attn", "attn.c_proj": "attn_proj", "mlp.c_fc": "c_fc", "mlp.c_proj": "mlp_proj"}
    state = {}
    for name, value in theirs.state_dict().items():
        name = name.removeprefix("transformer.")
        for old, new in renamed.items():
            if f".{old}." in name:
                name = name.replace(old, new)
                value = value.T if value.ndim == 2 else value
        state[name] = value
    model.load_state_dict(state)
    return model
