"""Compare paralab's speed with baselines: the same GPT-2 in a plain torch loop, raw DDP and FSDP2, and transformers.

    paralab peers --steps 4 --variants "ours single,plain loop,transformers"
    paralab peers --model own

With `--model own` the model is a Llama that a program brings itself (benchmarks/own_module.py), trained through `import
paralab`, Accelerate and Lightning Fabric where it is installed.

Batch, precision, data, initial weights and number of processes are the same. Each variant runs in its own processes,
repeats interleaved. The baselines are written the usual way and run in the environment as it is; ours are started as
paralab starts its processes. If the losses do not agree, nothing is compared. At the end the peak memory of each ZeRO
stage is printed next to the figure of its formula.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paralab.benchmarks.variants import EVERY, OF_MODELS, OWN_VARIANTS, VARIANTS, Table, chosen, left_out, room_for
from paralab.errors import ConfigError, RankError
from paralab.layout import Layout
from paralab.measure.categories import MEMORY_CATEGORIES
from paralab.options import heading
from paralab.options.choices import LrSchedule, Precision
from paralab.options.config import RunConfig, changed
from paralab.options.flags import resolve as read_config
from paralab.options.option import MEMORY, STEPS, option
from paralab.processes.with_parent import with_parent
from paralab.records.environment import Environment
from paralab.records.row import RunRecord

if TYPE_CHECKING:  # they import torch: `--help` does not wait for it
    from paralab.planning.work import Work
    from paralab.processes.failure import Progress
    from paralab.processes.mesh import Mesh
    from paralab.processes.rank import Rank

_ROOT = Path(__file__).resolve().parent.parent
_PREFIX = "peers-result "  # torchrun mixes other lines into the output

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

_VARIANTS_HELP = (f"of gpt2 {', '.join(VARIANTS)}", f"of own {', '.join(OWN_VARIANTS)}")

MEMORY_PROCESSES = 4
# bytes of N parameters on one of d ranks: 4 of the weight, 4 of the gradient, 8 of the two moments, all in fp32
STATE_FORMULAS = {
    "ddp": "16 N",
    "zero1": "8 N + 8 N/d",
    "zero2": "16 N/d + G",
    "zero3": "16 N/d + G",
}  # G: gradients of one group, whole


@dataclass(frozen=True, kw_only=True)
class PeersConfig(RunConfig):
    """The work that all variants share. `steps` are timed after `warmup` ones."""

    model: str = changed(
        "model",
        "gpt2",
        help="Model to train: a built-in one, or one that a program brings itself",
        choices=tuple(OF_MODELS),
        others=lambda text: None,
        form="",
    )
    size: str | None = changed("size", "small")
    global_batch_size: int | None = changed("global_batch_size", 8)
    steps: int = changed("steps", 5)
    warmup: int = option(
        2, "Number of warm-up steps, which come first and are left out of the timing", group=STEPS, at_least=1
    )
    out: str | None = changed("out", None, help="JSON file to write every run to", unset="not written")
    repeats: int = option(5, "Number of runs of each variant, interleaved", group=STEPS, at_least=1)
    variants: list[str] | None = option(
        None,
        f"Variants to run, each with the one of ours that it is compared with: {'; '.join(_VARIANTS_HELP)}",
        group=STEPS,
        choices=EVERY,
        metavar="A,B,...",
        unset="all that fit this machine",
    )
    precision: Precision = changed(
        "precision",
        "fp32",
        help="Precision of the arithmetic; weights and optimizer states stay fp32",
        choices=tuple(TOLERANCES),
    )
    lr_schedule: LrSchedule = changed(
        "lr_schedule", "constant", help="Learning-rate schedule; the baselines have no other", choices=("constant",)
    )
    memory: bool = option(
        True,
        f"Also measure the peak memory of gpt2 under each ZeRO stage on {MEMORY_PROCESSES} processes",
        group=MEMORY,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "own":
            _check_own(self)


def main(argv: list[str]) -> int:
    """Run all variants and print ratios. Returns: 0, or 1 when losses do not agree."""
    if argv[:1] == ["--variant"]:
        return _work(argv[1], argv[2:])
    config = read_config(argv, config=PeersConfig, prog="paralab peers", description=__doc__)
    loops = ", ".join(config.variants or ["every variant"])
    heading.show(f"baselines of {heading.model_of(config)}: {loops}, {config.repeats} runs of each")
    machine = Environment.read()
    variants = chosen(config.variants, gpus=machine.gpu_count, model=config.model)
    with_memory = _wants_memory(config) and room_for(MEMORY_PROCESSES, machine.gpu_count)
    for line in _left_out(config, variants, gpus=machine.gpu_count):
        print(line, flush=True)
    results: Results = {variant: [] for variant in variants}
    for repeat in range(config.repeats):
        for variant in variants:
            results[variant].append(_run(variant, argv, nproc=OF_MODELS[config.model][variant][0]))
            step_s = results[variant][-1]["step_s"]
            print(f"[{repeat + 1}/{config.repeats}] {variant}: {step_s:.3f} s a step", flush=True)
    cpu = f"{machine.cpu_model}, {machine.cores_allowed:g} cores"
    print(f"\n{machine.gpu_name or cpu}, torch {machine.torch_version}")
    disagreeing = _disagreeing(results, config.precision, OF_MODELS[config.model])
    for line in disagreeing:
        print(f"not comparable: {line}")
    if not disagreeing:
        print(_table(results, config, TARGETS if machine.gpu_count is None else {}))
    records = _memory(config) if with_memory else []
    if records:
        print(_memory_table(records))
    if config.out:
        memory = [asdict(record) for record in records]
        whole = {"config": config.to_dict(), "machine": vars(machine), "results": results, "memory": memory}
        Path(config.out).write_text(json.dumps(whole, indent=1) + "\n")
        print(f"every run in {config.out}")
    return 1 if disagreeing else 0


_OWN_OPTIONS = ("model size global_batch_size steps warmup repeats variants out learning_rate clip_norm seed").split()


def _check_own(config: PeersConfig) -> None:
    """Raise ConfigError for an option that the own module does not take: its program decides what else there is."""
    if config.size not in ("small", "tiny"):
        raise ConfigError(f"--model own has no size {config.size}: use small or tiny")
    if config.global_batch_size is None or config.global_batch_size % 2:
        raise ConfigError(f"--global-batch-size {config.global_batch_size} for 2 processes: use an even number")
    for declared in fields(config):
        if declared.name not in _OWN_OPTIONS and getattr(config, declared.name) != declared.default:
            raise ConfigError(f"--{declared.name.replace('_', '-')} does not apply to --model own: leave it out")


def run_of(variant: str, config: PeersConfig) -> PeersConfig:
    """Return the run that a variant is: one of ours, or for a baseline the plainest with as many processes."""
    nproc, _ = VARIANTS[variant]
    strategy = variant.removeprefix("ours ") if variant.startswith("ours ") else {1: "single", 2: "ddp"}[nproc]
    return replace(config, strategy=strategy, nproc=nproc, engine="torch")


def _left_out(config: PeersConfig, variants: list[str], *, gpus: int | None) -> Iterator[str]:
    """Yield a line for everything that will not be measured though nobody left it out."""
    if config.variants is None:
        yield from left_out(variants, gpus=gpus, model=config.model)
    if _wants_memory(config) and not room_for(MEMORY_PROCESSES, gpus):
        yield f"memory of the ZeRO stages left out: it needs {MEMORY_PROCESSES} GPUs, {gpus} here"


def _wants_memory(config: PeersConfig) -> bool:
    return config.memory and config.model == "gpt2"


def _run(variant: str, argv: list[str], *, nproc: int) -> dict[str, Any]:
    """Run one variant once in processes of its own and return what rank 0 measured."""
    start = [sys.executable]
    if nproc > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)]
    done = subprocess.run(
        with_parent([*start, str(_ROOT / "benchmarks" / "peers.py"), "--variant", variant, *argv]),
        capture_output=True,
        text=True,
        cwd=_ROOT,
    )
    for line in done.stdout.splitlines():
        if line.startswith(_PREFIX):
            return json.loads(line.removeprefix(_PREFIX))
    raise RankError(f"variant {variant} gave no result (exit status {done.returncode}): {done.stderr.strip()[-300:]}")


def _disagreeing(results: Results, precision: Precision, table: Table = VARIANTS) -> list[str]:
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


def _table(results: Results, config: PeersConfig, targets: Mapping[tuple[str, str], float]) -> str:
    """Return the medians, the ratios repeat by repeat with their spread, and the share of the roofline.

    targets: the least ratio required, by variant and precision.
    """
    lines = [
        f"{config.precision}, global batch {config.global_batch_size}, medians of {config.repeats} interleaved runs",
        f"{'variant':<25}{'processes':>9}{'step s':>9}{'loss':>9}{'of roofline':>13}"
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
            f"{variant:<25}{nproc:>9}{step_s:>9.3f}{loss:>9.4f}{_percent(share):>13}"
            f"{ratio:>26}{f'{target}x' if target else '':>8}"
        )
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" if share <= 1 else "exceeded"


def _memory(config: PeersConfig) -> list[RunRecord]:
    """Measure one step of each ZeRO stage. Called last: it changes the environment of processes started after it."""
    from paralab.running import task

    run = {declared.name: getattr(config, declared.name) for declared in fields(RunConfig)}
    records = []
    for stage, strategy in enumerate(STATE_FORMULAS):
        layout = Layout(dp=MEMORY_PROCESSES, zero=stage)
        case = RunConfig(**run | {"layout": layout, "steps": 1, "warmup": 1, "engine": "torch", "out": None})
        print(f"[memory] {strategy} on {MEMORY_PROCESSES} processes", flush=True)
        records.append(task.start("paralab.benchmarks.peers:measure_memory", case, nproc=MEMORY_PROCESSES))
    return records


def measure_memory(rank: "Rank", progress: "Progress", run: RunConfig) -> RunRecord:
    """Return the record of a case, on every rank."""
    from paralab.benchmarks.case.run import run_case
    from paralab.console.phases import hidden
    from paralab.running import task

    with task.on_rank(run, rank, progress, phases=hidden()) as here:
        return run_case(here.work, requested=here.requested, rank=rank, mesh=here.mesh, progress=progress)


def _memory_table(records: list[RunRecord]) -> str:
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
        line = f"{record.strategy:<9}" + "".join(f"{size / 2**20:>12.0f}" for size in peak)
        formula = f"{STATE_FORMULAS[str(record.strategy)]} = {predicted / 2**20:.0f}"
        lines.append(f"{line}{state / 2**20:>9.0f}{formula:>22} {state / predicted - 1:+.1%}")
    return "\n".join(lines)


def _work(variant: str, argv: list[str]) -> int:
    """Train one variant in this process, one of its ranks, and print the result on rank 0."""
    import torch
    import torch.distributed as dist

    from paralab.benchmarks import baselines
    from paralab.planning.resolve import resolve
    from paralab.processes import cluster
    from paralab.processes.mesh import make_mesh
    from paralab.processes.rank import Rank
    from paralab.running import task

    config = read_config(argv, config=PeersConfig, prog="paralab peers")
    if config.model == "own":
        return _train_own(variant, config)
    ours = variant.startswith("ours ")
    work = resolve(run_of(variant, config))
    rank = Rank.from_env()
    if ours:
        result = task.start("paralab.benchmarks.peers:measure_ours", work.run, nproc=work.layout.world_size)
    else:
        if rank.world_size > 1:
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        mesh = make_mesh(work.layout, rank.device)
        result = _measured(work, rank, mesh, lambda: baselines.make_step(variant, work, rank.device))
        cluster.leave()
    if rank.is_main:
        print(_PREFIX + json.dumps(result), flush=True)
    return 0


def _train_own(variant: str, config: PeersConfig) -> int:
    """Train the own module by one variant in this process, one of its ranks, and print the result on rank 0."""
    from paralab.benchmarks import own_loops
    from paralab.processes import cluster
    from paralab.processes.rank import Rank

    rank = Rank.from_env()
    result = own_loops.measure(variant, config)
    cluster.leave()
    if rank.is_main:
        print(_PREFIX + json.dumps(result), flush=True)
    return 0


def measure_ours(rank: "Rank", progress: "Progress", run: PeersConfig) -> dict[str, Any]:
    """Return the time of a step of paralab's, the losses and the share of the roofline, on every rank."""
    from paralab import engines
    from paralab.console.phases import hidden
    from paralab.running import task

    with task.on_rank(run, rank, progress, phases=hidden()) as here:

        def make_step() -> Callable[[Any], float]:
            engine = engines.build(here.work.context(here.mesh), "torch")
            return lambda batch: engine.step(batch).loss.item()

        return _measured(here.work, rank, here.mesh, make_step)


def _measured(
    work: "Work", rank: "Rank", mesh: "Mesh", make_step: Callable[[], Callable[[Any], float]]
) -> dict[str, Any]:
    """Take the steps of one variant on this rank. make_step: returns what takes a batch and gives its loss."""
    from paralab.axes.precision import DTYPES
    from paralab.measure.roofline import measured_peak
    from paralab.planning.batches import training_batches

    config = work.run
    batches = list(islice(training_batches(work, mesh), config.warmup + config.steps))
    step = make_step()
    losses, times = [], []
    for batch in batches:
        start = time.perf_counter()
        losses.append(step(batch))
        times.append(time.perf_counter() - start)
    step_s = statistics.median(times[config.warmup :])
    flops = work.spec.flops_of(work.model_config).per_sample * work.division.global_batch_size
    achieved = flops / step_s / rank.world_size
    dtype = DTYPES[config.precision]
    peak = measured_peak(rank.device.type, dtype)
    if achieved > peak.flops:
        peak = measured_peak(rank.device.type, dtype, again=True)
    return {"step_s": step_s, "losses": losses, "roofline": achieved / peak.flops}


if __name__ == "__main__":
    sys.path[0] = str(_ROOT)
    from paralab.cli import main as paralab

    sys.exit(paralab(["peers", *sys.argv[1:]]))
