"""The same GPT-2 through paralab and through what one would write by hand: `paralab peers`.

Batch, precision, data, starting weights and process count are the same; each arm runs in its own processes, repeats
interleaved. The others run in the environment as it is, written the usual way; ours is started as paralab starts its
workers. Losses must agree, or there is no comparison.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from parallel.config import RunConfig, option
from parallel.config import resolve as read_config
from parallel.errors import ConfigError, RankError, did_you_mean

_ROOT = Path(__file__).resolve().parent.parent
_PREFIX = "peers-result "  # torchrun mixes other lines into the output

# arm -> (processes, strategy of ours that it is held against; None for ours)
ARMS: dict[str, tuple[int, str | None]] = {
    "ours single": (1, None),
    "plain loop": (1, "ours single"),
    "transformers": (1, "ours single"),
    "ours ddp": (2, None),
    "raw DDP": (2, "ours ddp"),
    "ours zero3": (2, None),
    "raw FSDP2": (2, "ours zero3"),
    "ours zero1": (2, None),
    "ZeroRedundancyOptimizer": (2, "ours zero1"),
}
TARGETS = {
    ("plain loop", "fp32"): 1.2,
    ("transformers", "fp32"): 1.3,
    ("plain loop", "bf16"): 1.5,
    ("transformers", "bf16"): 2.0,
}


@dataclass(frozen=True, kw_only=True)
class PeersConfig(RunConfig):
    """The work that all arms share. `steps` are timed after `warmup` ones."""

    size: str | None = option("small", "preset of the model", group="work")
    global_batch_size: int | None = option(8, "samples per optimizer step", group="division", at_least=1)
    steps: int = option(5, "timed steps of each run", group="steps", at_least=1)
    warmup: int = option(2, "steps before them", group="steps", at_least=1)
    repeats: int = option(5, "runs of each arm, interleaved", group="steps", at_least=1)
    arms: str | None = option(None, f"which to run: {', '.join(ARMS)}", group="steps", metavar="A,B,...")


def main(argv: list[str]) -> int:
    """Run all arms and print ratios. Returns: 0, or 1 when losses do not agree."""
    if argv[:1] == ["--arm"]:
        return _work(argv[1], argv[2:])
    config = read_config(argv, config=PeersConfig, prog="paralab peers", description=__doc__)
    arms = _chosen(config.arms)
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for repeat in range(config.repeats):
        for arm in arms:
            results[arm].append(_run(arm, argv))
            print(f"[{repeat + 1}/{config.repeats}] {arm}: {results[arm][-1]['step_s']:.3f} s a step", flush=True)
    print(_table(results, config))
    disagreeing = list(_disagreeing(results, config.precision))
    for line in disagreeing:
        print(f"not comparable: {line}")
    if config.out:
        Path(config.out).write_text(json.dumps({"config": config.to_dict(), "results": results}, indent=1) + "\n")
        print(f"every run in {config.out}")
    return 1 if disagreeing else 0


def _chosen(text: str | None) -> list[str]:
    arms = [arm.strip() for arm in text.split(",")] if text else list(ARMS)
    for arm in arms:
        if arm not in ARMS:
            raise ConfigError(f"arm {arm!r} is unknown{did_you_mean(arm, ARMS)}: use some of {', '.join(ARMS)}")
    ours = [ARMS[arm][1] for arm in arms if ARMS[arm][1]]
    return [arm for arm in ARMS if arm in arms or arm in ours]


def _run(arm: str, argv: list[str]) -> dict[str, Any]:
    """Run one arm once in processes of its own and return what rank 0 measured."""
    nproc, _ = ARMS[arm]
    start = [sys.executable]
    if nproc > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)]
    done = subprocess.run(
        [*start, str(_ROOT / "benchmarks" / "peers.py"), "--arm", arm, *argv],
        capture_output=True,
        text=True,
        cwd=_ROOT,
    )
    for line in done.stdout.splitlines():
        if line.startswith(_PREFIX):
            return json.loads(line.removeprefix(_PREFIX))
    raise RankError(f"arm {arm} gave no result (exit status {done.returncode}): {done.stderr.strip()[-300:]}")


def _disagreeing(results: dict[str, list[dict[str, Any]]], precision: str) -> list[str]:
    """Return the arms whose first loss is not that of ours, which started from the same weights and batch."""
    allowed = 1e-5 if precision == "fp32" else 1e-2
    lines = []
    for arm, runs in results.items():
        ours = ARMS[arm][1]
        if ours is not None:
            got, want = runs[0]["losses"][0], results[ours][0]["losses"][0]
            if not abs(got - want) <= allowed * abs(want):
                lines.append(f"{arm} starts at loss {got:.6f}, {ours} at {want:.6f}")
    return lines


def _table(results: dict[str, list[dict[str, Any]]], config: PeersConfig) -> str:
    """Return the medians, the ratios repeat by repeat with their spread, and the share of the roofline."""
    lines = [
        "",
        f"{config.precision}, global batch {config.global_batch_size}, medians of {config.repeats} interleaved runs",
        f"{'arm':<25}{'processes':>9}{'step s':>9}{'loss':>9}{'of roofline':>13}{'ours is faster by':>26}{'target':>8}",
    ]
    for arm, runs in results.items():
        nproc, ours = ARMS[arm]
        step_s = statistics.median(run["step_s"] for run in runs)
        share = statistics.median(run["roofline"] for run in runs)
        ratio = ""
        if ours is not None:
            ratios = sorted(b["step_s"] / a["step_s"] for a, b in zip(results[ours], runs, strict=True))
            ratio = f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        target = TARGETS.get((arm, config.precision), 1.0) if ours else None
        loss = runs[0]["losses"][0]
        lines.append(
            f"{arm:<25}{nproc:>9}{step_s:>9.3f}{loss:>9.4f}{share:>13.0%}{ratio:>26}{f'{target}x' if target else '':>8}"
        )
    return "\n".join(lines)


def _work(arm: str, argv: list[str]) -> int:
    """Train one arm in this process, one of its ranks, and print the result on rank 0."""
    import torch
    import torch.distributed as dist

    from benchmarks import by_hand
    from parallel import cluster, engines
    from parallel.cluster import Rank
    from parallel.measure.roofline import measured_peak
    from parallel.parity import training_batches
    from parallel.precision import DTYPES
    from parallel.resolve import resolve

    config = read_config(argv, config=PeersConfig, prog="paralab peers")
    ours = arm.startswith("ours ")
    strategy = arm.removeprefix("ours ") if ours else {1: "single", 2: "ddp"}[ARMS[arm][0]]
    work = resolve(replace(config, strategy=strategy, nproc=ARMS[arm][0], engine="torch"))
    rank = Rank.from_env()
    if ours:
        cluster.join(rank)
    elif rank.world_size > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    mesh = cluster.make_mesh(work.layout, rank.device)
    batches = list(islice(training_batches(work, mesh), config.warmup + config.steps))
    if ours:
        engine = engines.build(work.context(mesh), "torch")
        step: Callable[[Any], float] = lambda batch: engine.step(batch).loss.item()  # noqa: E731
    else:
        step = by_hand.make_step(arm, work, rank.device)
    losses, times = [], []
    for batch in batches:
        start = time.perf_counter()
        losses.append(step(batch))
        times.append(time.perf_counter() - start)
    step_s = statistics.median(times[config.warmup :])
    flops = work.spec.flops(work.model_config).per_sample * work.division.global_batch_size
    peak = measured_peak(rank.device.type, DTYPES[config.precision]).flops * rank.world_size
    if rank.is_main:
        result = {"step_s": step_s, "losses": losses, "roofline": flops / step_s / peak}
        print(_PREFIX + json.dumps(result), flush=True)
    cluster.leave()
    return 0


if __name__ == "__main__":
    sys.path[0] = str(_ROOT)
    from parallel.cli import main as paralab

    sys.exit(paralab(["peers", *sys.argv[1:]]))
