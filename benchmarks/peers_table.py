"""What `paralab peers` prints: the variants whose losses disagree, a table of times, and one of memory."""

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paralab.benchmarks.variants import OF_MODELS, VARIANTS, Table
from paralab.console.quantities import decimals, time_text
from paralab.measure.categories import MEMORY_CATEGORIES
from paralab.options.choices import Precision
from paralab.records.row import RunRecord

if TYPE_CHECKING:
    from paralab.benchmarks.peers import PeersConfig

Results = dict[str, list[dict[str, Any]]]  # what each run of a variant measured
TARGETS = {  # on a CPU
    ("plain loop", "fp32"): 1.2,
    ("transformers", "fp32"): 1.3,
    ("plain loop", "bf16"): 1.5,
    ("transformers", "bf16"): 2.0,
}
# Relative differences of the loss: at the first step rounding alone; later also that AdamW as constructed by default
# decays biases and norms, which ours leaves alone.
TOLERANCES: Mapping[Precision, tuple[float, float]] = {"fp32": (1e-5, 2e-3), "bf16": (2e-3, 1e-2)}
MEMORY_PROCESSES = 4
# bytes of N parameters on one of d ranks: 4 of the weight, 4 of the gradient, 8 of the two moments, all in fp32
STATE_FORMULAS = {
    "ddp": "16 N",
    "zero1": "8 N + 8 N/d",
    "zero2": "16 N/d + G",
    "zero3": "16 N/d + G",
}  # G: gradients of one group, whole


def disagreements(results: Results, precision: Precision, table: Table = VARIANTS) -> list[str]:
    """Return the variants whose losses differ from ours, which start from the same weights and see the same data."""
    lines = []
    for variant, runs in results.items():
        ours = table[variant][1]
        if ours is None:
            continue
        pairs = zip(runs[0]["losses"], results[ours][0]["losses"], strict=True)
        for step, (got, want) in enumerate(pairs):
            if not abs(got - want) <= TOLERANCES[precision][min(step, 1)] * abs(want):
                lines.append(f"{variant} has loss {got:.6f} at step {step}, {ours} has {want:.6f}")
                break
    return lines


def times_table(results: Results, config: "PeersConfig", targets: Mapping[tuple[str, str], float]) -> str:
    """Return the medians, the ratios repeat by repeat with their spread, and the share of the roofline.

    targets: the least ratio required, by variant and precision.
    """
    lines = [
        f"{config.precision}, global batch {config.global_batch_size}, medians of {config.repeats} interleaved runs",
        f"{'variant':<25}{'processes':>9}{'step':>9}{'loss':>9}{'of roofline':>13}"
        f"{'ours is faster by':>26}{'target':>8}",
    ]
    for variant, runs in results.items():
        nproc, ours = OF_MODELS[config.model][variant]
        step_s = statistics.median(run["step_s"] for run in runs)
        share = statistics.median(run["roofline"] for run in runs) if "roofline" in runs[0] else None
        ratio = ""
        if ours is not None:
            ratios = sorted(b["step_s"] / a["step_s"] for a, b in zip(results[ours], runs, strict=True))
            ratio = f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        target = targets.get((variant, config.precision), 1.0) if ours else None
        loss = runs[0]["losses"][0]
        lines.append(
            f"{variant:<25}{nproc:>9}{time_text(step_s):>9}{loss:>9.4f}{_percent(share):>13}"
            f"{ratio:>26}{f'{target}x' if target else '':>8}"
        )
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" if share <= 1 else "exceeded"


def memory_table(records: list[RunRecord]) -> str:
    """Return MiB of the fullest rank: by category when their sum was largest, and the model's state at its largest."""
    lines = [
        "",
        f"peak memory per rank, MiB: N = {records[0].parameters:,} parameters, d = {MEMORY_PROCESSES} ranks, "
        "G = gradients not yet reduced",
        f"{'strategy':<9}" + "".join(f"{name:>12}" for name in MEMORY_CATEGORIES) + f"{'state':>9}{'arithmetic':>22}",
    ]
    for record in records:
        peak = [getattr(record, f"memory_{name}_bytes") for name in MEMORY_CATEGORIES]
        state, predicted = record.memory_state_peak_bytes, record.predicted_state_bytes
        assert state is not None and predicted is not None
        line = f"{record.strategy:<9}" + "".join(f"{decimals(size / 2**20, 0):>12}" for size in peak)
        formula = f"{STATE_FORMULAS[str(record.strategy)]} = {decimals(predicted / 2**20, 0)}"
        lines.append(f"{line}{decimals(state / 2**20, 0):>9}{formula:>22} {state / predicted - 1:+.1%}")
    return "\n".join(lines)
