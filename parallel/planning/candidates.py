"""The layouts that may be legal for a training: degrees one by one, and all that is chosen beside them as arrays."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from paralab.axes.case import Case, CountedCase
from paralab.axes.weights import layer_weights
from paralab.errors import LayoutError
from paralab.layout import common_divisors, layers_of_stages
from paralab.planning.cases import Raw
from paralab.planning.hardware import Device
from paralab.planning.parts import RANKS
from paralab.planning.settle import BUILT_ON, Settled, settle
from paralab.planning.stages import WithExperts, held_by

# The columns that a search fills in where a question leaves them empty.
CHOSEN = (
    "dp",
    "tp",
    "pp",
    "cp",
    "ep",
    "zero",
    "shard",
    "schedule",
    "vpp",
    "layers_per_stage",
    "sequence_parallel",
    "cp_style",
    "micro_batch_size",
    "recompute",
)
_LONG = 8192  # tokens of a sequence from which context parallelism is tried
_CHUNKS = (2, 3, 4, 6, 8)  # stages of a rank under an interleaved schedule
# Schedules of other software than PyTorch's
_SCHEDULES_OF = {
    "deepspeed": ("1f1b",),
    "megatron-deepspeed": ("1f1b",),
    "megatron-lm": ("1f1b", "interleaved"),
    "megatron-core": ("1f1b", "interleaved"),
    "llm-foundry": (),
}
_LARGEST_MICRO = 1024
Part = tuple[Settled, dict[str, np.ndarray], dict[str, np.ndarray]]


def parts_of(raw: dict[str, Any], own: Mapping[str, Device] | None, gpu: str) -> Iterator[Part]:
    """Yield, for each choice of degrees and schedule, one settled case and the arrays of what else is chosen."""
    for degrees in _degrees(raw):
        for schedule, vpp in _schedules(raw, degrees):
            fixed = {**raw, **degrees, **({"schedule": schedule, "vpp": vpp} if schedule else {})}
            micro = _micro_batches(raw, degrees)
            if not micro:
                continue
            try:
                settled = settle({**fixed, "micro_batch_size": micro[0]}, own, gpu)
            except LayoutError:
                continue
            if made := _arrays(raw, degrees, schedule, vpp, micro, settled):
                yield settled, *made


def is_divided(raw: Raw) -> bool:
    """Return whether there are degrees that divide a model and its batch over all GPUs of a question."""
    return next(_degrees(raw), None) is not None


def _degrees(raw: Raw) -> Iterator[dict[str, int]]:
    n, layers = int(raw["n_gpus"]), int(raw.get("layers", 1))
    heads = int(raw.get("heads", 0) or max(1, raw.get("hidden", 128) // 128))
    experts, length = int(raw.get("experts", 0) or 0), int(raw.get("sequence_length", 2048))
    batch, is_given = int(raw["global_batch_size"]), "tp" in raw
    shared = [int(raw[name]) for name in ("kv_heads", *(() if experts else ("ffn",))) if raw.get(name)]
    for tp in _divisors(n, raw.get("tp"), at_most=heads):
        if heads % tp or (not is_given and any(whole % tp for whole in shared)):
            continue
        for pp in _divisors(n // tp, raw.get("pp"), at_most=layers):
            for cp in _divisors(n // tp // pp, raw.get("cp"), at_most=64 if length >= _LONG else 1):
                dp = n // tp // pp // cp
                if raw.get("dp", dp) != dp or batch % dp or length % cp:
                    continue
                for ep in _divisors(dp, raw.get("ep"), at_most=experts or 1):
                    if not experts or experts % ep == 0:
                        yield {"dp": dp, "tp": tp, "pp": pp, "cp": cp, "ep": ep}


def _divisors(n: int, given: Any, *, at_most: int) -> list[int]:
    if given is not None:
        return [int(given)] if n % int(given) == 0 else []
    return common_divisors([n], most=min(n, at_most))


def _framework(raw: Raw) -> str:
    name = str(raw.get("framework", "")).lower()
    return BUILT_ON.get(name, name)


def _schedules(raw: Raw, degrees: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return schedules with stages of a rank; of software that is named, those that it has."""
    pp, layers = degrees["pp"], int(raw["layers"])
    if pp == 1:
        return [("", 1)] if raw.get("vpp", 1) == 1 else []
    every = [("1f1b", 1), ("gpipe", 1), ("zb-h1", 1), ("zb-h2", 1)]
    every += [(name, vpp) for name in ("interleaved", "zb-1p") for vpp in _CHUNKS]
    every += [(name, 2) for name in ("zbv", "dualpipev")]
    stages = len(raw["layers_per_stage"]) if "layers_per_stage" in raw else None
    has = _SCHEDULES_OF.get(_framework(raw)) if "schedule" not in raw else None
    every = [one for one in every if has is None or one[0] in has]
    return [
        (name, vpp)
        for name, vpp in every
        if raw.get("schedule", name) == name
        and raw.get("vpp", vpp) == vpp
        and (pp * vpp <= layers if stages is None else pp * vpp == stages)
    ]


def splits(layers: int, stages: int, end: int) -> list[tuple[int, ...]]:
    """Return ways to divide layers over stages with fewer in the first and the last one: layers (stages,) of each.

    The embedding and the output layer make the ends heavier; end: how many layers the output layer weighs.
    """
    found = []
    for first, last in ((0, 1), (1, 1), (0, max(2, end)), (1, max(2, end))):
        most = -(-(layers + first + last) // stages)
        less = most * stages - first - last - layers
        if most > max(first, last) and less <= stages - 2:
            found.append(layers_of_stages(layers, stages, first=most - first, last=most - last))
    return [one for one in dict.fromkeys(found) if one != layers_of_stages(layers, stages)]


def _micro_batches(raw: Raw, degrees: Mapping[str, int]) -> list[int]:
    """Return the sizes of micro-batches that divide the rows of a data rank."""
    if "micro_batch_size" in raw:
        return [int(raw["micro_batch_size"])]
    rows = int(raw["global_batch_size"]) // degrees["dp"]
    return common_divisors([rows], most=min(rows, _LARGEST_MICRO))


def _arrays(
    raw: Raw, degrees: Mapping[str, int], schedule: str, vpp: int, micro: Sequence[int], settled: Settled
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None:
    """Return what was chosen by column, and the fields of the cases that differ, each an array (layouts,)."""
    pp, tp, dp = degrees["pp"], degrees["tp"], degrees["dp"]
    rows = int(settled.case.global_batch_size) // dp
    counts = [size for size in micro if _legal(schedule, rows // size, pp)]
    zeros = _zeros(raw, degrees, int(settled.case.gpus_per_node))
    pieces = [raw["sequence_parallel"]] if "sequence_parallel" in raw else [False, True] if tp > 1 else [False]
    recomputed = [raw["recompute"]] if "recompute" in raw else _recomputed(settled.case)
    stages = _stages(raw, degrees, schedule, vpp, settled)
    styles = _styles(raw, degrees, settled)
    chosen = list(product(range(len(stages)), zeros, pieces, recomputed, styles, counts))
    if not chosen:
        return None
    number, stage, sequence, recompute, style, size = (np.array(column) for column in zip(*chosen, strict=True))
    zero, shard = stage.T
    n = len(chosen)
    made = {name: np.full(n, degrees[name]) for name in ("dp", "tp", "pp", "cp", "ep")}
    made |= {
        "zero": zero,
        "shard": shard,
        "sequence_parallel": sequence,
        "recompute": recompute,
        "micro_batch_size": size,
    }
    made |= {"schedule": np.full(n, schedule, dtype="<U12"), "vpp": np.full(n, vpp), "cp_style": style.astype("<U7")}
    held = {name: np.array([one[name] for _, one in stages])[number] for name in _held(settled.case)}
    names = np.empty(len(stages), dtype=object)
    names[:] = [split for split, _ in stages]
    return made | {"layers_per_stage": names[number]}, _case(settled, made | held)


def _recomputed(case: Case) -> list[str]:
    """Return what may be recomputed: the attention core only where that frees memory, which flash attention has not."""
    frees = not case.is_counted and (case.keeps_scores or case.framework == "torchtitan")
    return ["none", *(["selective"] if frees else []), "full"]


def _zeros(raw: Raw, degrees: Mapping[str, int], per_node: int) -> list[tuple[int, int]]:
    """Return stages of ZeRO with the ranks of a group: 0 for all, or as many as a node has."""
    dp, tp, cp = degrees["dp"], degrees["tp"], degrees["cp"]
    every = [0, 1] if degrees["pp"] > 1 and _framework(raw) in _SCHEDULES_OF else [0, 1, 2, 3]
    stages = [raw["zero"]] if "zero" in raw else every if dp * cp > 1 else [0]
    if "shard" in raw:
        return [(zero, raw["shard"]) for zero in stages if zero or not raw["shard"]]
    groups = range(degrees["ep"], dp, degrees["ep"]) if cp == 1 else ()  # which divide the experts among themselves
    near = [n for n in groups if n > 1 and dp % n == 0 and n * tp <= per_node]
    return [(zero, shard) for zero in stages for shard in (0, *(near[-1:] if zero else ()))]


def _styles(raw: Raw, degrees: Mapping[str, int], settled: Settled) -> list[str]:
    """Return how context ranks may share a sequence: a ring takes two pieces of each, Ulysses whole heads."""
    cp, case = degrees["cp"], settled.case
    if cp == 1:
        return [""]
    ring, heads = case.sequence_length % (2 * cp) == 0, cp * degrees["tp"]
    ulysses = case.heads % heads == 0 and case.kv_heads % heads == 0
    found = [name for name, is_legal in (("ring", ring), ("ulysses", ulysses)) if is_legal]
    return [name for name in found if raw.get("cp_style", name) == name]


def _stages(
    raw: Raw, degrees: Mapping[str, int], schedule: str, vpp: int, settled: Settled
) -> list[tuple[tuple[int, ...], Mapping[str, float]]]:
    """Return ways to divide the layers over stages, () for evenly, and what the ranks hold then."""
    case, pp = settled.case, degrees["pp"]
    as_settled = {name: getattr(case, name) for name in _held(case)}
    if "layers_per_stage" in raw or pp == 1:
        return [(raw.get("layers_per_stage", ()), as_settled)]
    with_experts = WithExperts(raw.get("dense_layers", 0), raw.get("experts_every", 1))
    hold = raw["counted"].held_by if "counted" in raw else partial(held_by, with_experts=with_experts)
    uneven = splits(int(case.layers), pp * vpp, _end(case))
    return [((), as_settled), *((split, hold(split, pp, vpp, schedule)) for split in uneven)]


def _end(case: Case) -> int:
    """Return how many layers the output layer weighs."""
    if isinstance(case, CountedCase):
        return round(case.last_flops / case.block_flops)
    return round(float(case.vocab * case.hidden / layer_weights(case)))


def _held(case: Case) -> tuple[str, ...]:
    """Return the fields of a case that say what its ranks hold."""
    more = [f"{what}_{rank}" for what in ("weights", "kept") for rank in RANKS]
    return (*_HELD, *(more if case.is_counted else [f"mixture_{rank}" for rank in RANKS]))


def _legal(schedule: str, micro_batches: int, pp: int) -> bool:
    """Return whether a schedule runs with so many micro-batches, as torch.distributed.pipelining has it."""
    if schedule in ("interleaved", "zb-h1", "zb-h2", "zb-1p"):
        return micro_batches % pp == 0
    if schedule in ("1f1b", "zbv", "dualpipev"):
        return micro_batches >= pp * (2 if schedule == "dualpipev" else 1)
    return True


# The fields of a case that differ between layouts; all others are one value.
_HELD = ("layers_first", "layers_middle", "layers_last", "layers_held", "held_rank")
_VARYING = (*(name for name in CHOSEN if name != "layers_per_stage"), *_HELD, "dp_overlap")


def _case(settled: Settled, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the varying fields of the cases of a part, each an array (layouts,)."""
    n = len(made["dp"])
    varying = (*_VARYING, *(name for name in _held(settled.case) if name not in _HELD))
    values = {name: made[name] if name in made else np.full(n, getattr(settled.case, name)) for name in varying}
    values["dp_overlap"] = values["dp_overlap"] | (values["zero"] >= 2)
    return {name: _number(column) for name, column in values.items()}


def _number(column: np.ndarray) -> np.ndarray:
    return column.astype(float) if column.dtype.kind in "iu" else column
