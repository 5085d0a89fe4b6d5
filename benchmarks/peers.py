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
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from paralab.benchmarks.peers_table import (
    MEMORY_PROCESSES,
    STATE_FORMULAS,
    TARGETS,
    TOLERANCES,
    Results,
    disagreements,
    memory_table,
    times_table,
)
from paralab.benchmarks.variants import EVERY, OF_MODELS, OWN_VARIANTS, VARIANTS, chosen, left_out, room_for
from paralab.console.outputs import check_outputs, write_whole
from paralab.console.quantities import time_text
from paralab.errors import ConfigError, RankError
from paralab.layout import Layout
from paralab.options import heading
from paralab.options.choices import LrSchedule, Precision
from paralab.options.config import RunConfig, changed
from paralab.options.flags import resolve as read_config
from paralab.options.option import MEMORY, STEPS, option
from paralab.processes.with_parent import run_whole
from paralab.records.environment import Environment
from paralab.records.row import RunRecord

_ROOT = Path(__file__).resolve().parent.parent
PREFIX = "peers-result "  # torchrun mixes other lines into the output

_VARIANTS_HELP = (f"of gpt2 {', '.join(VARIANTS)}", f"of own {', '.join(OWN_VARIANTS)}")


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
        from paralab.benchmarks.peers_worker import measure  # imports torch: `--help` does not wait for it

        return measure(argv[1], argv[2:])
    config = read_config(argv, config=PeersConfig, prog="paralab peers", description=__doc__)
    check_outputs({"--out": config.out})
    loops = ", ".join(config.variants or ["every variant"])
    heading.show(f"baselines of {heading.model_of(config)}: {loops}, {config.repeats} runs of each")
    machine = Environment.read()
    variants = chosen(config.variants, gpus=machine.gpu_count, model=config.model)
    with_memory = _wants_memory(config) and room_for(MEMORY_PROCESSES, machine.gpu_count)
    for line in not_measured(config, variants, gpus=machine.gpu_count):
        print(line, flush=True)
    results: Results = {variant: [] for variant in variants}
    for repeat in range(config.repeats):
        for variant in variants:
            results[variant].append(_run(variant, argv, nproc=OF_MODELS[config.model][variant][0]))
            step_s = results[variant][-1]["step_s"]
            print(f"[{repeat + 1}/{config.repeats}] {variant}: {time_text(step_s)} a step", flush=True)
    cpu = f"{machine.cpu_model}, {machine.cores_allowed:g} cores"
    print(f"\n{machine.gpu_name or cpu}, torch {machine.torch_version}")
    disagreeing = disagreements(results, config.precision, OF_MODELS[config.model])
    for line in disagreeing:
        print(f"not comparable: {line}")
    if not disagreeing:
        print(times_table(results, config, TARGETS if machine.gpu_count is None else {}))
    records = _memory(config) if with_memory else []
    if records:
        print(memory_table(records))
    if config.out:
        memory = [asdict(record) for record in records]
        whole = {"config": config.to_dict(), "machine": vars(machine), "results": results, "memory": memory}
        write_whole(Path(config.out), (json.dumps(whole, indent=1) + "\n").encode())
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


def not_measured(config: PeersConfig, variants: list[str], *, gpus: int | None) -> Iterator[str]:
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
    done = run_whole([*start, str(_ROOT / "benchmarks" / "peers.py"), "--variant", variant, *argv], cwd=_ROOT)
    for line in done.stdout.splitlines():
        if line.startswith(PREFIX):
            return json.loads(line.removeprefix(PREFIX))
    raise RankError(f"variant {variant} gave no result (exit status {done.returncode}): {done.stderr.strip()[-300:]}")


def _memory(config: PeersConfig) -> list[RunRecord]:
    """Measure one step of each ZeRO stage. Called last: it changes the environment of processes started after it."""
    from paralab.running import task

    run = {declared.name: getattr(config, declared.name) for declared in fields(RunConfig)}
    records = []
    for stage, strategy in enumerate(STATE_FORMULAS):
        layout = Layout(dp=MEMORY_PROCESSES, zero=stage)
        case = RunConfig(**run | {"layout": layout, "steps": 1, "warmup": 1, "engine": "torch", "out": None})
        print(f"[memory] {strategy} on {MEMORY_PROCESSES} processes", flush=True)
        records.append(task.start("paralab.benchmarks.peers_worker:measure_memory", case, nproc=MEMORY_PROCESSES))
    return records


if __name__ == "__main__":
    sys.path[0] = str(_ROOT)
    from paralab.cli import main as paralab

    sys.exit(paralab(["peers", *sys.argv[1:]]))
