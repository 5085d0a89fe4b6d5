"""Claims about memory: bytes are counted, the same in every run, so that they have no interval."""

from collections.abc import Sequence

from paralab.axes.costs import Plan
from paralab.axes.data import cost
from paralab.axes.held import state_bytes
from paralab.benchmarks.claims.findings import Finding, Measured, Verdict, markdown, median_of, of_case, speeds
from paralab.benchmarks.claims.series import Options
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.cases import parse
from paralab.planning.constants import shipped
from paralab.planning.resolve import resolve
from paralab.planning.settle import arrays, settle
from paralab.records.row import RunRecord

_RECIPES = (("fp16", "fp16", "fp16 gradients"), ("bf16", "fp32", "fp32 gradients"), ("fp32", "fp32", ""))
_ENOUGH = 0.9  # of a saving that is claimed
_ROUNDING = 1e-5  # of a loss in fp32, relative


def master_weights(measured: Measured) -> Finding:
    """Count the bytes of a weight under autocast, beside fp32."""
    plain, mixed = (of_case(measured["precision"], {"precision": name})[0] for name in ("fp32", "bf16"))
    sizes = [_a_parameter(row, "memory_parameters_bytes") for row in (plain, mixed)]
    ratio = sizes[1] / sizes[0]
    verdict: Verdict = "holds" if ratio > 1.45 else "holds in part" if ratio > 0.95 else "does not hold here"
    body = [
        (row.precision or "", *(f"{_a_parameter(row, f'memory_{name}_bytes'):.2f}" for name in names))
        for row in (plain, mixed)
        for names in [("parameters", "gradients", "optimizer", "activations", "tensors_peak")]
    ]
    heads = ("precision", "weights", "gradients", "optimizer", "activations", "all")
    why = (
        "Autocast keeps the weights in fp32 alone and converts each where a matrix product needs it; the conversions "
        "count among activations, until backward has used them. A copy of all weights in 16 bits is kept by programs "
        "that hold the model in 16 bits (Megatron-LM, DeepSpeed's bf16), which paralab does not do."
    )
    figure = f"{sizes[1]:.2f} bytes a parameter in bf16, {sizes[0]:.2f} in fp32: {ratio:.2f} times"
    return Finding(figure, verdict, why, markdown(heads, body))


def _a_parameter(row: RunRecord, column: str) -> float:
    return float(getattr(row, column) or 0) / (row.parameters or 1)


def bytes_per_parameter(measured: Measured) -> Finding:
    """Count the states of a parameter by category, beside what the planner has for other recipes."""
    body: list[tuple[str, ...]] = []
    each = {}
    for name in ("fp32", "bf16"):
        (row,) = of_case(measured["precision"], {"precision": name})[:1]
        each[name] = _a_parameter(row, "memory_state_peak_bytes")
        body.append((f"{name}, counted here", "4", "", "4", "8", "", f"{each[name]:.2f}"))
    body += [_recipe(*recipe) for recipe in _RECIPES]
    heads = ("recipe", "weights", "master weights", "gradients", "moments", "converted gradients", "all")
    why = (
        "Here weights, gradients and both moments are fp32 in every precision (4 + 4 + 8). 20 is the sum for fp16 "
        "weights and gradients beside fp32 master weights, moments and converted gradients, which is how the planner "
        "counts Megatron-LM: the lower lines are its closed forms and were not measured here."
    )
    verdict: Verdict = "holds" if round(each["bf16"]) == 20 else "holds in part"
    return Finding(f"{each['bf16']:.2f} bytes a parameter in bf16", verdict, why, markdown(heads, body))


def _recipe(precision: str, gradients: str, said: str) -> tuple[str, ...]:
    case = {"framework": "megatron-lm", "precision": precision, "gradient_precision": gradients}
    (settled, _) = arrays([settle(parse(_LLAMA | case | {"n_gpus": "1"}))])
    parts = {name: float(size[0]) for name, size in cost.bytes_per_weight(settled).items()}
    names = ("weights", "master weights", "gradients", "moments", "converted gradients")
    shown = [f"{parts[name]:g}" if parts[name] else "" for name in names]
    title = ", ".join(filter(None, (f"{precision} in Megatron-LM", said)))
    return (f"{title}, closed form", *shown, f"{sum(parts.values()):g}")


_LLAMA = {"layers": "32", "hidden": "4096", "heads": "32", "gpu": "H100-SXM-80GB"}


def zero(measured: Measured) -> Finding:
    """Count the states of a rank by ZeRO stage and number of ranks, and predict those of larger models."""
    counted = [*measured["zero-on-2"], *measured["zero-on-4"], *measured["zero"]]
    body = [line for rows in _by_ranks(counted) for line in _stages(rows)]
    saved = {}
    for size in _LARGER:
        whole = _predicted(size, 0)
        for stage in _CLAIMED:
            bytes_ = _predicted(size, stage)
            saved[stage] = whole / bytes_
            body.append((f"ZeRO-{stage}", size, f"{_MANY}", "predicted", f"{bytes_:.2f}", f"{saved[stage]:.2f}"))
    for stage in _CLAIMED:
        bytes_, less = _mixed(stage)
        body.append((f"ZeRO-{stage}", "any", f"{_MANY}", "mixed precision, predicted", f"{bytes_:.2f}", f"{less:.2f}"))
    holds = [stage for stage, times in _CLAIMED.items() if saved[stage] >= _ENOUGH * times]
    verdict: Verdict = "holds" if len(holds) == 3 else "holds in part" if holds else "does not hold here"
    where = f"It holds for {', '.join(f'ZeRO-{stage}' for stage in holds)}. " if verdict == "holds in part" else ""
    heads = ("stage", "GPT-2", "ranks", "how", "bytes a parameter", "times less")
    times = ", ".join(f"ZeRO-{stage} {saved[stage]:.1f} times" for stage in _CLAIMED)
    figure = f"{_LARGER[-1]} on {_MANY} ranks in fp32: {times} less"
    return Finding(figure, verdict, where + _ZERO_WHY, markdown(heads, body))


_MANY = 64
_CLAIMED = {1: 4.0, 2: 8.0, 3: float(_MANY)}
_LARGER = ("124m", "1.5b")
_ZERO_WHY = (
    "4 and 8 times are for mixed precision, where 12 of 16 bytes are optimizer states; in fp32 they are 8 of 16, so "
    "that ZeRO-1 approaches twice. N times is what remains between steps: at the fullest moment the whole gradients of "
    "one block, or of the embedding, stand beside the shards. ZeRO-2 divides weights as well between steps here, and "
    "so saves more than is claimed; from forward to backward it gathers them, which counts as buffers and not as "
    "states. Measured is the census of real processes; predictions are the closed forms that it is compared with in "
    "each run. Those of mixed precision are the planner's, for bf16 weights and gradients; ZeRO-3 there is FSDP, which "
    "keeps no second copy of the weights."
)


def _by_ranks(rows: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Return rows of plain data parallelism and each stage by ranks, those of real processes first."""
    keys = dict.fromkeys((row.world_size, row.status) for row in rows)
    return [[row for row in rows if (row.world_size, row.status) == key] for key in keys]


def _stages(rows: Sequence[RunRecord]) -> list[tuple[str, ...]]:
    of = {row.zero or 0: row for row in rows}
    whole = _a_parameter(of[0], "memory_state_peak_bytes")
    found: list[tuple[str, ...]] = []
    for stage in _CLAIMED:
        states = _a_parameter(of[stage], "memory_state_peak_bytes")
        how = "counted in a dry run" if of[stage].status == "dry run" else "measured"
        cells = (f"{of[stage].size}", f"{of[stage].world_size}", how, f"{states:.2f}", f"{whole / states:.2f}")
        found.append((f"ZeRO-{stage}", *cells))
    return found


def _predicted(size: str, stage: int) -> float:
    """Return the predicted bytes of states a parameter, of a size of GPT-2 in fp32 on many ranks."""
    layout = Layout.parse(f"dp{_MANY}/zero{stage}" if stage else f"dp{_MANY}")
    work = resolve(RunConfig(model="gpt2", size=size, layout=layout, global_batch_size=_MANY), dry=True)
    return state_bytes(work).total / work.n_parameters


def _mixed(stage: int) -> tuple[float, float]:
    """Return bytes a parameter of a stage in mixed precision on many ranks, and how many times less than without it."""
    sizes = []
    for zero_stage in (0, stage):
        degrees = {"n_gpus": f"{_MANY}", "dp": f"{_MANY}", "zero": f"{zero_stage}"}
        case, machine = arrays([settle(parse(_LLAMA | {"precision": "bf16", "gradient_precision": "bf16"} | degrees))])
        sizes.append(float(cost.state_bytes(Plan(case, machine, shipped()), cost.Weights(1.0))[0]))
    return sizes[1], sizes[0] / sizes[1]


def checkpointing(measured: Measured) -> Finding:
    """Compare activations, operations and time with recomputation of every block and without."""
    rows = measured["checkpointing"]
    cases: tuple[Options, ...] = ({"checkpointing": "none"}, {"checkpointing": "full"})
    (speed,) = speeds(rows, cases)
    kept, recomputed = (of_case(rows, case) for case in cases)
    sizes = [median_of(mine, "memory_activations_bytes") for mine in (kept, recomputed)]
    known = [row.hfu / row.mfu for row in recomputed if row.hfu and row.mfu]
    operations = known[0] if known else None
    shrinks = sizes[1] < sizes[0]
    grows = operations is not None and 1.25 <= operations <= 1.40
    verdict: Verdict = "holds" if shrinks and grows else "holds in part" if shrinks else "does not hold here"
    body = [
        (str(case["checkpointing"]), f"{size / 2**20:.2f}", *_peak_and_step(mine))
        for case, mine, size in zip(cases, (kept, recomputed), sizes, strict=True)
    ]
    table = markdown(("`checkpointing`", "activations, MiB", "all tensors, MiB", "median step, ms"), body)
    counted = f"{operations:.2f} times the operations" if operations else "operations unknown"
    slower = f", {speed} as fast" if speed else ""
    why = "Operations are those of matrix products, counted; what a step takes longer is measured."
    return Finding(f"{sizes[0] / sizes[1]:.2f} times fewer activations, {counted}{slower}", verdict, why, table)


def _peak_and_step(rows: Sequence[RunRecord]) -> tuple[str, str]:
    peak, step_s = median_of(rows, "memory_tensors_peak_bytes"), median_of(rows, "step_time_p50_s")
    return f"{peak / 2**20:.2f}", f"{1e3 * step_s:.1f}"


def accumulation(measured: Measured) -> Finding:
    """Compare four accumulated micro-batches with the whole batch: what they compute, their memory and time."""
    rows, cases = measured["accumulation"], ({"accumulation": 1}, {"accumulation": 4})
    (speed,) = speeds(rows, cases)
    whole, parts = (of_case(rows, case) for case in cases)
    proven = [row for row in parts if row.parity is not None]
    norms = [of_case(measured["batch-norm"], case)[0] for case in cases]
    apart = abs((norms[1].loss_first or 0.0) / (norms[0].loss_first or 1.0) - 1)
    body = [
        (f"{case['accumulation']}", *_peak_and_step(mine), f"{mine[0].loss_last:.7f}")
        for case, mine in zip(cases, (whole, parts), strict=True)
    ]
    table = markdown(("micro-batches", "all tensors, MiB", "median step, ms", "last loss"), body)
    passed = bool(proven) and all(row.parity for row in proven)
    verdict: Verdict = "does not hold here" if not passed else "holds in part" if apart > _ROUNDING else "holds"
    less = median_of(whole, "memory_tensors_peak_bytes") / median_of(parts, "memory_tensors_peak_bytes")
    result = proven[0].parity_result if proven else "not checked"
    why = (
        f"GPT-2: parity with one process {result}. Where samples of a batch see each other it is another function: "
        f"ResNet with batch norm has a first loss that is off by {apart:.1e} (relative) with 4 micro-batches."
    )
    return Finding(f"{less:.2f} times less memory, {speed} as fast", verdict, why, table)
