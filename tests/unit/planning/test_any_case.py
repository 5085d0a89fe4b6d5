"""Whatever a row says: it is refused in a sentence, or its prediction is a number that can be."""

import random
import warnings
from typing import Any

import numpy as np

from paralab.errors import UsageError
from paralab.planning import hardware
from paralab.planning.cases import parse
from paralab.planning.columns import COLUMNS, SCHEDULES
from paralab.planning.predict import predict
from paralab.planning.settle import settle

WORDS: dict[str, tuple[str, ...]] = {
    "layers": ("1", "2", "7", "24", "100000"),
    "hidden": ("1", "100", "1024", "8192", "10000000"),
    "heads": ("1", "8", "16", "64"),
    "kv_heads": ("1", "8", "64"),
    "head_dim": ("1", "64", "128", "100000"),
    "ffn": ("1", "4096", "10000000"),
    "vocab": ("1", "50257", "10000000"),
    "experts": ("0", "8", "128"),
    "experts_per_token": ("0", "1", "8"),
    "expert_ffn": ("0", "768"),
    "shared_ffn": ("0", "0", "0", "768"),
    "dense_layers": ("0", "0", "0", "1"),
    "experts_every": ("1", "1", "1", "2"),
    "sequence_length": ("1", "1024", "1000000000"),
    "gpus_per_node": ("1", "8", "72"),
    "intra_node_gbyte_per_s": ("0.001", "300"),
    "inter_node_gbit_per_s": ("0.001", "400"),
    "schedule": SCHEDULES,
    "vpp": ("1", "2", "4"),
    "layers_per_stage": ("", "12;12", "3;4"),
    "position": ("learned", "rotary", "alibi", "none"),
    "norm": ("layernorm", "rmsnorm"),
    "cp_style": ("ring", "ulysses"),
    "micro_batch_size": ("1", "4", "1000000"),
    "recompute": ("none", "selective", "full"),
    "precision": hardware.PRECISIONS,
    "gradient_precision": ("fp32", "bf16"),
    "state_precision": ("fp32", "bf16"),
    "attention": ("eager", "fused", "flash1", "flash2", "flash3"),
    "framework": ("", "torchtitan", "megatron-lm", "megatron-deepspeed", "deepspeed", "paralab", "mine"),
    "memory_kind": ("allocated", "reserved", "device"),
    "gpu": tuple(hardware.known()),
    "zero": ("0", "1", "2", "3"),
    **dict.fromkeys(("dp", "tp", "pp", "cp", "ep"), ("1", "1", "2", "8", "64")),
    **dict.fromkeys(
        ("gated", "tied_embeddings", "sequence_parallel", "fused_norm", "compile", "dp_overlap", "tp_overlap"),
        ("true", "false"),
    ),
}


def test_any_case_is_refused_or_predicted() -> None:
    """Without a warning of numpy."""
    chance = random.Random(0)
    settled: list[Any] = []
    refused = 0
    for _ in range(4000):
        names = [column.name for column in COLUMNS if column.name in WORDS and chance.random() < 0.5]
        cells = {"layers": "24", "hidden": "1024"} | {name: chance.choice(WORDS[name]) for name in names}
        try:
            settled.append(settle(parse(cells)))
        except UsageError as error:
            refused += 1
            assert str(error) and "\n" not in str(error)
    assert len(settled) > 400 and refused > 400
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        found = predict(settled)
    assert np.all(np.isfinite(found.step_time_s)) and np.all(found.step_time_s > 0)
    assert np.all(found.memory_gib > 0) and np.all(found.mfu > 0)
