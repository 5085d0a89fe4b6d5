"""No change of one thing is predicted to move the wrong way, over models, devices and layouts drawn at random."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from paralab.axes.costs import GIB
from paralab.axes.weights import all_weights
from paralab.errors import UsageError
from paralab.planning import hardware
from paralab.planning.predict import Prediction, evaluate
from paralab.planning.settle import arrays, settle

Raw = dict[str, Any]
GATED = {"gated": True, "position": "rotary", "norm": "rmsnorm", "tied_embeddings": False}


def shape(layers: int, hidden: int, heads: int, kv: int, ffn: int, vocab: int, length: int, **more: Any) -> Raw:
    """Return the columns of a model."""
    sizes = {"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": kv, "ffn": ffn}
    return {**sizes, "vocab": vocab, "sequence_length": length, **more}


MODELS = (
    shape(12, 768, 12, 12, 3072, 50257, 1024),
    shape(4, 256, 4, 4, 1024, 256, 256),
    shape(96, 12288, 96, 96, 49152, 51200, 2048),
    shape(16, 1024, 16, 16, 4096, 1_000_000, 1024),
    shape(32, 4096, 32, 8, 14336, 128256, 8192, **GATED),
    shape(32, 4096, 32, 8, 14336, 128256, 1 << 20, **GATED),
    shape(126, 16384, 128, 8, 53248, 128256, 8192, **GATED),
    shape(48, 2048, 32, 4, 6144, 151936, 4096, head_dim=128, **GATED)
    | {"experts": 128, "experts_per_token": 8, "expert_ffn": 768},
    shape(48, 2048, 32, 4, 6144, 151936, 4096, head_dim=128, **GATED)
    | {"experts": 128, "experts_per_token": 8, "expert_ffn": 768, "shared_ffn": 1536, "dense_layers": 3},
)
SCHEDULES = (("1f1b", 1), ("1f1b", 1), ("gpipe", 1), ("interleaved", 2), ("zb-h1", 1), ("zbv", 2))
FRAMEWORKS = ("", "paralab", "megatron-lm", "nemo", "deepspeed", "torchtitan", "llm-foundry")


def drawn(chance: random.Random) -> Raw:
    """Return the columns of one case, everything that a change may touch among them."""
    raw = dict(chance.choice(MODELS))
    device = hardware.known()[gpu := chance.choice(list(hardware.known()))]
    tp, pp = chance.choice((1, 1, 2, 8)), chance.choice((1, 1, 2, 4))
    cp = chance.choice((1, 1, 4)) if raw["sequence_length"] >= 8192 else 1
    dp = 2 ** chance.randint(0, 9)
    schedule, vpp = chance.choice(SCHEDULES) if pp > 1 else ("", 1)
    micro, count = chance.choice((1, 2)), 4 * pp * chance.choice((1, 2, 4))
    old = device.arch in ("Volta", "Turing")
    return raw | {
        "gpu": gpu,
        "dp": dp,
        "tp": tp,
        "pp": pp,
        "cp": cp,
        "n_gpus": dp * tp * pp * cp,
        "ep": chance.choice([n for n in (1, 2, 4) if dp % n == 0]) if "experts" in raw else 1,
        "zero": chance.choice((0, 1, 2, 3)) if dp * cp > 1 else 0,
        **({"schedule": schedule, "vpp": vpp} if pp > 1 else {}),
        "sequence_parallel": chance.random() < 0.5,
        "cp_style": chance.choice(("ring", "ulysses")),
        "micro_batch_size": micro,
        "global_batch_size": dp * micro * count,
        "recompute": chance.choice(("none", "selective", "full")),
        "precision": chance.choice([name for name in hardware.PRECISIONS if device.peak_tflops(name)]),
        "attention": chance.choice(("eager", "fused", "flash1", "flash2", "fused" if old else "flash3")),
        **{name: chance.random() < 0.5 for name in ("compile", "fused_norm", "dp_overlap", "tp_overlap")},
        "framework": chance.choice(FRAMEWORKS),
    }


@pytest.fixture(scope="module")
def cases() -> list[Raw]:
    """Cases that are legal."""
    chance, found = random.Random(12), list[Raw]()
    while len(found) < 250:
        raw = drawn(chance)
        try:
            settle(raw)
        except UsageError:
            continue
        found.append(raw)
    return found


def predicted(cases: list[Raw]) -> Prediction:
    return evaluate(*arrays([settle(raw) for raw in cases]))


def test_no_prediction_is_impossible(cases: list[Raw]) -> None:
    case, machine = arrays([settle(raw) for raw in cases])
    found = evaluate(case, machine)
    assert np.all(np.isfinite(found.step_time_s)) and np.all(found.mfu < 0.9)
    shared = case.tp * case.pp * case.ep * np.where(case.zero == 3, case.dp * case.cp, 1)
    assert np.all(found.memory_gib * GIB > case.element_bytes * all_weights(case) / shared)
    assert not np.any(found.fits & (found.memory_gib * GIB > machine.memory_bytes))


def is_old(raw: Raw) -> bool:
    return raw["attention"] in ("eager", "fused")


def chunks(raw: Raw) -> int:
    return int(raw["global_batch_size"] // (raw["dp"] * raw["micro_batch_size"]))


Change = Callable[[Raw], Raw]
ANY: dict[str, tuple[Callable[[Raw], bool], Change]] = {
    "batch": (lambda r: True, lambda r: {"global_batch_size": 2 * r["global_batch_size"]}),
    "micro-batch": (lambda r: r["pp"] == 1, lambda r: {"micro_batch_size": 2 * r["micro_batch_size"]}),
    "layers": (lambda r: True, lambda r: {"layers": 2 * r["layers"]}),
    "sequence": (lambda r: True, lambda r: {"sequence_length": 2 * r["sequence_length"]}),
    "vocab": (lambda r: True, lambda r: {"vocab": 4 * r["vocab"]}),
    "gqa": (lambda r: r["kv_heads"] == r["heads"], lambda r: {"kv_heads": r["heads"] // 4}),
    "experts per token": (lambda r: "experts" in r, lambda r: {"experts_per_token": 2 * r["experts_per_token"]}),
    "experts": (lambda r: "experts" in r, lambda r: {"experts": 2 * r["experts"]}),
    "ep": (lambda r: "experts" in r and r["dp"] % (2 * r["ep"]) == 0, lambda r: {"ep": 2 * r["ep"]}),
    "selective": (lambda r: r["recompute"] == "none", lambda r: {"recompute": "selective"}),
    "full": (lambda r: r["recompute"] == "selective", lambda r: {"recompute": "full"}),
    "network / 8": (lambda r: True, lambda r: {"inter_node_gbit_per_s": figure(r).network_gbit_per_s / 8}),
    "link / 8": (lambda r: True, lambda r: {"intra_node_gbyte_per_s": figure(r).link_gbyte_per_s / 8}),
    "sequence parallel": (
        lambda r: r["tp"] > 1 and not r["sequence_parallel"],
        lambda r: {"sequence_parallel": True},
    ),
    "zero 1": (
        lambda r: r["zero"] == 0 < r["dp"] * r["cp"] - 1 and "deep" not in r["framework"],
        lambda r: {"zero": 1},
    ),
    # paralab's stage 2 gathers weights beside its shards, in pipelines in fp32 as many bytes as stage 1 has and more
    "zero 2": (lambda r: r["zero"] == 1 and r["framework"] not in ("deepspeed", "paralab"), lambda r: {"zero": 2}),
    "zero 3": (lambda r: r["zero"] == 2, lambda r: {"zero": 3}),
    "hsdp": (lambda r: r["zero"] == 3 and r["cp"] == 1 and r["dp"] >= 16, lambda r: {"shard": 8}),
    "zb-h1": (lambda r: r.get("schedule") == "1f1b", lambda r: {"schedule": "zb-h1"}),
    "zb-h2": (lambda r: r.get("schedule") == "zb-h1", lambda r: {"schedule": "zb-h2"}),
    "gpipe": (lambda r: r.get("schedule") == "1f1b", lambda r: {"schedule": "gpipe"}),
    "flash2": (lambda r: is_old(r) or r["attention"] == "flash1", lambda r: {"attention": "flash2"}),
    "flash3": (lambda r: r["attention"] == "flash2", lambda r: {"attention": "flash3"}),
    "compile": (lambda r: not r["compile"], lambda r: {"compile": True}),
    "dp overlap": (lambda r: not r["dp_overlap"], lambda r: {"dp_overlap": True}),
    "tp overlap": (lambda r: not r["tp_overlap"], lambda r: {"tp_overlap": True}),
    "fp32": (lambda r: r["precision"] in ("fp16", "bf16"), lambda r: {"precision": "fp32"}),
    "sgd": (lambda r: True, lambda r: {"optimizer": "sgd"}),
    "states in 16 bits": (lambda r: "paralab" not in r["framework"], lambda r: {"state_precision": "bf16"}),
}


def figure(raw: Raw) -> hardware.Device:
    return hardware.known()[raw["gpu"]]


# the least and the most that step time and memory of the fullest device may be multiplied by
BOUNDS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "batch": ((1.0, 2.02), (1.0, 2.02)),
    "micro-batch": ((0.45, 1.001), (1.0, 2.02)),
    "layers": ((1.0, 2.1), (1.0, 2.1)),
    "sequence": ((1.0, 4.1), (1.0, 4.1)),
    "vocab": ((1.0, 4.0), (1.0, 4.0)),
    "gqa": ((0.7, 1.0), (0.7, 1.0)),
    "experts per token": ((1.0, 2.1), (1.0, 2.1)),
    "experts": ((1.0, 2.1), (1.0, 2.1)),
    "ep": ((0.4, 5.0), (0.3, 1.0)),
    "selective": ((1.0, 1.45), (0.0, 1.1)),
    "full": ((1.0, 1.45), (0.0, 1.1)),  # what zero-bubble schedules computed again stays until the weights' turn
    "network / 8": ((1.0, 8.0), (1.0, 1.0)),
    "link / 8": ((1.0, 8.0), (1.0, 1.0)),
    "sequence parallel": ((0.6, 1.13), (0.2, 1.0)),
    "zero 1": ((0.4, 1.02), (0.2, 1.0)),
    "zero 2": ((0.999, 6.0), (0.2, 1.0)),
    "zero 3": ((1.0, 30.0), (0.0, 1.1)),
    "hsdp": ((0.2, 1.5), (1.0, 64.0)),
    "zb-h1": ((0.5, 1.0), (1.0, 40.0)),  # the most where recomputation saved nearly all
    "zb-h2": ((0.5, 1.0), (1.0, 2.1)),
    "gpipe": ((0.999, 1.001), (1.0, 64.0)),
    "flash2": ((0.05, 1.0), (0.0, 1.0)),
    "flash3": ((0.3, 1.0), (1.0, 1.0)),
    "compile": ((0.2, 1.0), (0.3, 1.0)),
    "dp overlap": ((0.2, 1.0), (1.0, 1.0)),
    "tp overlap": ((0.2, 1.0), (1.0, 1.0)),
    "fp32": ((0.99, 45.0), (0.5, 2.1)),
    "sgd": ((0.7, 0.999999), (0.4, 1.0)),
    "states in 16 bits": ((0.6, 0.999999), (0.4, 1.0)),
}


@pytest.mark.parametrize("name", ANY)
def test_a_change_moves_the_right_way_by_a_plausible_amount(name: str, cases: list[Raw]) -> None:
    which, change = ANY[name]
    before, after = list[Raw](), list[Raw]()
    for raw in filter(which, cases):
        other = raw | change(raw)
        try:
            settle(other)
        except UsageError:
            continue
        before.append(raw)
        after.append(other)
    assert len(before) >= 5
    old, new = predicted(before), predicted(after)
    for what, (low, high) in zip(("step_time_s", "memory_gib"), BOUNDS[name], strict=True):
        ratio = getattr(new, what) / getattr(old, what)
        wrong = np.flatnonzero((ratio < low * (1 - 1e-6)) | (ratio > high * (1 + 1e-6)))
        assert not len(wrong), f"{what} times {ratio[wrong[0]]:.3f}: {before[wrong[0]]}"


@pytest.mark.parametrize(
    ("slow", "fast"),
    [("V100-SXM2-32GB", "A100-SXM4-80GB"), ("A100-SXM4-80GB", "H100-SXM-80GB"), ("H100-SXM-80GB", "B200-SXM")],
)
def test_a_newer_device_takes_less_in_every_case(slow: str, fast: str, cases: list[Raw]) -> None:
    cases = [raw | {"precision": "fp16"} for raw in cases]
    times = [predicted([raw | {"gpu": gpu} for raw in cases]).step_time_s for gpu in (slow, fast)]
    assert np.all(times[1] <= times[0])
