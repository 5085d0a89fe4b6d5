"""`paralab plan --gpu device.json`: the fastest layouts of a model on a device that `paralab calibrate` measured."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paralab.axes.costs import GIB
from paralab.console.clock import Moment
from paralab.console.outputs import check_writable, write_whole
from paralab.console.phases import Phases
from paralab.console.quantities import decimals
from paralab.errors import ConfigError
from paralab.planning import cases
from paralab.planning.columns import SHAPES
from paralab.planning.hardware import Device

if TYPE_CHECKING:
    from paralab.models.configs import ModelConfig
    from paralab.models.spec import ModelSpec
    from paralab.planning.measured.search import Choice

# options of paralab plan that have no use here, and what to do without
_NOT_HERE = ("check", "report", "tokens", "days", "budget_usd", "price_per_gpu_hour", "set", "framework")
HEADER = ["rank", "layout", "step_time_s", "compute_s", "update_s", "link_s", "bubble_s", "memory_gib", "fits"]


def answer(options: Any, device: Device, *, top: int) -> None:
    """Search the layouts of one question, print a table of the fastest, and write all where a file was asked for.

    Raises: ConfigError for options that have no use here, UsageError where there is no layout.
    """
    from paralab.options.config import RunConfig
    from paralab.planning.measured import search
    from paralab.planning.measured.step import Cluster
    from paralab.planning.resolve import DEFAULT_BATCH

    for name in _NOT_HERE:
        if getattr(options, name) not in (None, False):
            raise ConfigError(f"--{name.replace('_', '-')} with a measured device: leave it out, or name a known GPU")
    if options.out:
        check_writable(Path(options.out))
    if options.n_gpus is None:
        raise ConfigError("--n-gpus is missing: say how many processes there are, such as --n-gpus 2")
    given = dict(cases.parse({name: getattr(options, name) or "" for name in ("n_gpus", "gpus_per_node", "precision")}))
    given |= cases.parse({"global_batch_size": options.global_batch_size or ""})
    spec, config, words = _model(options, device)
    batch = int(given.get("global_batch_size", DEFAULT_BATCH[spec.unit_of(config)]))
    precision = str(given.get("precision", device.default_precision))
    assert device.measured is not None
    with Phases(Moment.now(), transient=True) as phases:
        phases.begin("predicting layouts")
        found = search.search(
            spec,
            config,
            device.measured,
            ranks=int(given["n_gpus"]),
            batch=batch,
            run=RunConfig(precision=precision),  # type: ignore[arg-type]
            cluster=Cluster(int(given.get("gpus_per_node", device.gpus_per_node)), device.network_gbit_per_s),
            seen=phases.advance,
        )
        if options.calibrate_from:
            from paralab.commands.plan_own_rows import factor_of

            correction = factor_of(Path(options.calibrate_from), device.measured)
            found = [replace(one, predicted=one.predicted.times(correction.value)) for one in found]
    if options.out:
        write_whole(Path(options.out), cases.write(HEADER, [_cells(n, one) for n, one in enumerate(found, 1)]))
    if options.calibrate_from:
        print(correction.sentence)
    print("\n".join(_report(found, device, words, batch, top)))


def _model(options: Any, device: Device) -> "tuple[ModelSpec, ModelConfig, list[str]]":
    """Return the model of a question, and the words that name it. Raises: UsageError."""
    from paralab.planning.measured import imagined
    from paralab.planning.settle import settle

    length = {"sequence_length": options.sequence_length or ""}
    if not options.model:
        raw = cases.parse({name: getattr(options, name) or "" for name in SHAPES} | length)
        if "layers" not in raw or "hidden" not in raw:
            raise ConfigError("no model: give --model gpt2 --size nano, or --layers 4 --hidden 128")
        gated = {"gated": True} if options.gated else {}
        spec, config = imagined.model_of(settle({**raw, **gated, "gpu": device.gpu}).case)
        return spec, config, []
    given = [name for name in SHAPES if getattr(options, name) is not None] + ["gated"] * options.gated
    if given:
        raise ConfigError(f"--{given[0].replace('_', '-')} beside --model on a measured device: leave one of them out")
    return imagined.named(options.model, options.size, cases.parse(length).get("sequence_length"), options.tokenizer)


def _report(found: "Sequence[Choice]", device: Device, words: Sequence[str], batch: int, top: int) -> Iterator[str]:
    measured = device.measured
    assert measured is not None
    best = found[0]
    plan = best.plan
    yield f"{plan.spec.name}, {batch} samples a step, {plan.run.precision}, on {plan.layout.world_size} processes"
    yield f"{measured.name}, {measured.cores} cores, measured on {measured.date}"
    yield f"{len(found)} layouts looked at, {sum(one.fits for one in found)} of them fit"
    yield ""
    unit, scale = ("s", 1.0) if found[0].predicted.step_time_s >= 1 else ("ms", 1e3)
    yield f"{'layout':30}{f'step {unit}':>9}{'compute':>9}{'update':>8}{'links':>8}{'bubble':>8}{'GiB':>7}"
    for one in found[:top]:
        parts = one.predicted.parts
        numbers = "".join(
            f"{_cell(parts[name] * scale):>{width}}"
            for name, width in (("compute", 9), ("update", 8), ("link", 8), ("bubble", 8))
        )
        name = f"{one.plan.layout}{'' if one.plan.run.checkpointing == 'none' else ', recomputed'}"
        memory = one.predicted.memory.total / GIB
        step, fits = _cell(one.predicted.step_time_s * scale), "" if one.fits else " too much"
        yield f"{name:30}{step:>9}{numbers}{decimals(memory, 2):>7}{fits}"
    yield ""
    if not best.fits:
        yield "No layout fits into this machine: use fewer processes, or a smaller batch."
    elif words:
        typed = ["paralab", "run", *words, "--layout", str(plan.layout), "--global-batch-size", str(batch)]
        typed += ["--precision", plan.run.precision]
        typed += ["--checkpointing", plan.run.checkpointing] if plan.run.checkpointing != "none" else []
        typed += ["--accumulation", str(plan.run.accumulation)] if plan.run.accumulation > 1 else []
        yield "The fastest one:"
        yield f"  {shlex.join(typed)}"
    print("how far off such predictions are is not published yet: docs/planner.md", file=sys.stderr)


def _cell(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _cells(rank: int, one: "Choice") -> list[str]:
    parts = one.predicted.parts
    seconds = [one.predicted.step_time_s, *(parts[name] for name in ("compute", "update", "link", "bubble"))]
    memory = one.predicted.memory.total / GIB
    return [str(rank), str(one.plan.layout), *(f"{x:.6g}" for x in seconds), f"{memory:.6g}", str(one.fits).lower()]
