"""From what a row says to a case with nothing left open: defaults for what is empty, refusals of what cannot be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paralab.axes.case import Case, stacked
from paralab.axes.costs import GIB, Machine
from paralab.axes.pipeline.cost import V_SHAPED
from paralab.errors import LayoutError, ModelError, UsageError
from paralab.planning import hardware
from paralab.planning.cases import Raw
from paralab.planning.hardware import DEFAULT_GPU, Device
from paralab.planning.parts import even
from paralab.planning.stages import WithExperts, evenly, held_by

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
MEGATRON = ("megatron-lm", "megatron-deepspeed", "megatron-core")
# Software by the library whose layers, losses and collectives it runs
BUILT_ON = {
    "megatron": "megatron-lm",
    "nemo": "megatron-core",
    "megatron-bridge": "megatron-core",
    "composer": "llm-foundry",
    "llmfoundry": "llm-foundry",
    "torch-titan": "torchtitan",
}


@dataclass(frozen=True)
class Settled:
    """A case, its device, and what was taken for cells that are empty, by column.

    layers_per_stage: of each stage in model order, as the row has it; () for evenly.
    """

    case: Case
    device: Device
    intra_gbyte_per_s: float
    inter_gbit_per_s: float
    assumed: Mapping[str, Any]
    layers_per_stage: tuple[int, ...] = ()


class _Cells:
    """The cells of a row: `cells(name, default)` gives the value, and remembers a default that was taken."""

    def __init__(self, raw: Raw) -> None:
        self.raw, self.assumed = raw, dict[str, Any]()

    def __call__(self, name: str, default: Any) -> Any:
        if name in self.raw:
            return self.raw[name]
        self.assumed[name] = default
        return default

    def needed(self, name: str, example: str) -> Any:
        if name not in self.raw:
            raise ModelError(f"{name} is empty: give it, such as {example}")
        return self.raw[name]


def settle(raw: Raw, own: Mapping[str, Device] | None = None, default_gpu: str = DEFAULT_GPU) -> Settled:
    """Return the case that a row describes. own: devices of the user's own.

    Raises: ConfigError, ModelError or LayoutError where a row says what cannot be.
    """
    cells = _Cells(raw)
    device = hardware.find(str(cells("gpu", default_gpu)), own)
    values = {**_shape(cells), **_degrees(cells, device)}
    values |= _batch(cells, values)
    values |= _recipe(cells, values, device)
    values |= _stages(cells, values)
    _check(values, device)
    return Settled(
        case=raw["counted"].case(values) if "counted" in raw else Case(**values),
        device=device,
        intra_gbyte_per_s=cells("intra_node_gbyte_per_s", device.link_gbyte_per_s),
        inter_gbit_per_s=cells("inter_node_gbit_per_s", device.network_gbit_per_s),
        assumed={name: value for name, value in cells.assumed.items() if value not in ("", 0)},
        layers_per_stage=tuple(raw.get("layers_per_stage", ())),
    )


def _shape(cells: _Cells) -> dict[str, Any]:
    hidden = cells.needed("hidden", "4096")
    head_dim = cells.raw.get("head_dim")
    heads = cells("heads", max(1, hidden // (head_dim or min(128, hidden))))
    if head_dim is None and hidden % heads:
        raise ModelError(f"heads={heads} does not divide hidden={hidden}: give heads that do, or head_dim")
    gated = cells("gated", False)
    experts = cells("experts", 0)
    ffn = cells("ffn", 4 * hidden if not gated else round(8 * hidden / 3 / 256) * 256 or hidden)
    return {
        "layers": cells.needed("layers", "32"),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": cells("kv_heads", heads),
        "head_dim": cells("head_dim", hidden // heads),
        "ffn": ffn,
        "gated": gated,
        "vocab": cells("vocab", 50257),
        "tied_embeddings": cells("tied_embeddings", not gated),
        "position": cells("position", "rotary" if gated else "learned"),
        "norm": cells("norm", "rmsnorm" if gated else "layernorm"),
        "experts": experts,
        "experts_per_token": cells("experts_per_token", min(2, experts)),
        "expert_ffn": cells("expert_ffn", ffn if experts else 0),
        "shared_ffn": cells("shared_ffn", 0),
        "sequence_length": cells("sequence_length", 2048),
    }


def _degrees(cells: _Cells, device: Device) -> dict[str, Any]:
    tp, pp, cp, ep = (cells(name, 1) for name in ("tp", "pp", "cp", "ep"))
    others = tp * pp * cp
    if "n_gpus" in cells.raw and "dp" not in cells.raw and cells.raw["n_gpus"] % others:
        raise LayoutError(
            f"tp {tp} x pp {pp} x cp {cp} = {others} does not divide n_gpus={cells.raw['n_gpus']}: "
            f"use degrees whose product does"
        )
    dp = cells("dp", cells.raw.get("n_gpus", others) // others)
    n_gpus = cells("n_gpus", dp * others)
    if dp * others != n_gpus:
        raise LayoutError(
            f"dp {dp} x tp {tp} x pp {pp} x cp {cp} = {dp * others}, and n_gpus is {n_gpus}: "
            f"use degrees whose product is n_gpus"
        )
    return {
        "n_gpus": n_gpus,
        "gpus_per_node": cells("gpus_per_node", device.gpus_per_node),
        "dp": dp,
        "tp": tp,
        "pp": pp,
        "cp": cp,
        "ep": ep,
        "zero": cells("zero", 0),
        "shard": cells("shard", 0),
    }


def _batch(cells: _Cells, values: Mapping[str, Any]) -> dict[str, Any]:
    micro = cells("micro_batch_size", 1)
    rows = values["dp"] * micro
    batch = cells("global_batch_size", rows * (4 * values["pp"] if values["pp"] > 1 else 1))
    if batch % rows:
        raise LayoutError(
            f"dp {values['dp']} x micro_batch_size {micro} = {rows} does not divide global_batch_size={batch}: "
            f"use {max(1, batch // rows) * rows}"
        )
    return {"micro_batch_size": micro, "global_batch_size": batch}


def _recipe(cells: _Cells, values: Mapping[str, Any], device: Device) -> dict[str, Any]:
    framework = str(cells("framework", "")).lower()
    framework = BUILT_ON.get(framework, framework)
    precision = cells("precision", device.default_precision)
    old = device.arch in ("Volta", "Turing")
    attention = cells("attention", "fused" if old else "flash3" if device.arch == "Blackwell" else "flash2")
    scores = attention in ("eager", "fused")
    half = (precision == "fp16" and framework != "paralab") or (precision == "bf16" and framework == "deepspeed")
    pp = values["pp"]
    schedule = cells("schedule", ("interleaved" if cells.raw.get("vpp", 1) != 1 else "1f1b") if pp > 1 else "")
    return {
        "framework": framework,
        "precision": precision,
        "attention": attention,
        "schedule": schedule if pp > 1 else "",
        "vpp": cells("vpp", 2 if schedule in ("interleaved", *V_SHAPED) and pp > 1 else 1),
        "sequence_parallel": cells("sequence_parallel", False) and values["tp"] > 1,
        "cp_style": cells("cp_style", "ring"),
        "recompute": cells("recompute", "none"),
        "gradient_bytes": BYTES[cells("gradient_precision", precision if half else "fp32")],
        "state_bytes": BYTES[cells("state_precision", "fp32")],
        "fused_norm": cells("fused_norm", framework in MEGATRON),
        "compile": cells("compile", False),
        "optimizer": str(cells("optimizer", "adamw")).lower(),
        "dp_overlap": cells("dp_overlap", not scores or values["zero"] >= 2),
        "tp_overlap": cells("tp_overlap", False),
        "memory_kind": cells("memory_kind", "device"),
    }


def _stages(cells: _Cells, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layers of the first, the fullest middle and the last rank, and of the one that keeps most."""
    layers, pp, vpp = values["layers"], values["pp"], values["vpp"]
    with_experts = WithExperts(cells("dense_layers", 0), cells("experts_every", 1))
    share = {"mixture_share": with_experts.before(layers) / layers}
    stages = cells.raw.get("layers_per_stage")
    if stages is None:
        if layers < pp:
            raise LayoutError(f"pp={pp} has more stages than there are layers ({layers}): use pp up to {layers}")
        held = {name: int(value) for name, value in evenly(layers, pp, vpp, values["schedule"]).items()}
        stages = even(layers, pp * vpp)
        return held | share | with_experts.shares(stages, pp, vpp, values["schedule"])
    if len(stages) != pp * vpp:
        raise LayoutError(
            f"layers_per_stage has {len(stages)} numbers, and pp {pp} x vpp {vpp} = {pp * vpp}: give one for each"
        )
    if sum(stages) != layers:
        raise LayoutError(f"layers_per_stage adds up to {sum(stages)}, and layers is {layers}: make them equal")
    return held_by(stages, pp, vpp, values["schedule"], with_experts) | share


def _check(values: Mapping[str, Any], device: Device) -> None:
    """Raise LayoutError, ModelError or UsageError for values that do not fit together."""
    v = values
    if v["heads"] % v["tp"]:
        raise LayoutError(f"tp={v['tp']} does not divide heads={v['heads']}: use a tp that does")
    if v["heads"] % v["kv_heads"]:
        raise ModelError(f"kv_heads={v['kv_heads']} does not divide heads={v['heads']}: use a number that does")
    if v["sequence_length"] < v["cp"]:
        raise LayoutError(f"cp={v['cp']} is more than sequence_length={v['sequence_length']}: use fewer ranks")
    if v["experts"] and v["experts_per_token"] > v["experts"]:
        raise ModelError(f"experts_per_token={v['experts_per_token']} of experts={v['experts']}: use fewer")
    if not v["experts"] and (v["shared_ffn"] or v["mixture_share"] < 1):
        raise ModelError("shared_ffn, dense_layers or experts_every without experts: leave them empty, or give experts")
    if v["experts"] and not v["mixture_share"]:
        raise ModelError(f"no layer of {v['layers']} has experts: use fewer dense_layers, or leave experts empty")
    if v["ep"] > 1 and not v["experts"]:
        raise LayoutError(f"ep={v['ep']} without experts: leave ep empty, or give experts")
    if v["experts"] and v["experts"] % v["ep"]:
        raise LayoutError(f"ep={v['ep']} does not divide experts={v['experts']}: use an ep that does")
    if v["shard"] and (not v["zero"] or v["cp"] > 1 or v["dp"] % v["shard"] or v["shard"] in (1, v["dp"])):
        raise LayoutError(
            f"shard={v['shard']} of dp={v['dp']}, zero={v['zero']}, cp={v['cp']}: it takes ZeRO, no context ranks, and "
            "two groups or more of two data ranks or more"
        )
    if v["ep"] > v["dp"] * v["tp"] * v["cp"]:
        raise LayoutError(f"ep={v['ep']} is more than the {v['dp'] * v['tp'] * v['cp']} ranks of a stage: use less")
    if v["pp"] == 1 and v["vpp"] > 1:
        raise LayoutError(f"vpp={v['vpp']} without a pipeline: use vpp 1, or pp above 1")
    if v["schedule"] not in ("interleaved", "zb-1p", *V_SHAPED) and v["vpp"] > 1:
        raise LayoutError(f"schedule {v['schedule']} has one stage a rank, and vpp is {v['vpp']}: use interleaved")
    if device.peak_tflops(v["precision"]) is None:
        have = ", ".join(p for p in hardware.PRECISIONS if device.peak_tflops(p))
        raise UsageError(f"{device.gpu} has no products in {v['precision']}: use one of {have}")


# --- many cases at once


def arrays(settled: "list[Settled]") -> tuple[Case, Machine]:
    """Return cases and their machines as arrays (cases,)."""
    devices = [s.device for s in settled]
    peaks = [s.device.peak_tflops(str(s.case.precision)) for s in settled]
    machine = Machine(
        peak_flops=np.array(peaks, dtype=float) * 1e12,
        half_flops=np.array([d.half_tflops for d in devices]) * 1e12,
        arch=np.array([d.arch for d in devices]),
        watts_ratio=np.array([s.device.watts_ratio(s.case.gpus_per_node) for s in settled]),
        memory_bytes=np.array([d.memory_gib for d in devices]) * GIB,
        memory_bytes_per_s=np.array([d.memory_gbyte_per_s for d in devices]) * 1e9,
        intra_bytes_per_s=np.array([s.intra_gbyte_per_s for s in settled]) * 1e9,
        inter_bytes_per_s=np.array([s.inter_gbit_per_s for s in settled]) * 1e9 / 8,
        host_bytes_per_s=np.array([d.host_gbyte_per_s for d in devices]) * 1e9,
    )
    return stacked([s.case for s in settled]), machine
