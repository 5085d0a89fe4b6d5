"""Prove that strategies compute what one process computes: `paralab verify --model gpt2 --nproc 4`.

For each strategy, schedule and accumulation: a few optimizer steps on the same weights, data and seed as one
process, then the largest difference of loss, global gradient norm and every parameter against a tolerance.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch.distributed as dist

from models import SPECS
from parallel import cluster, model_rules, parity, strategies
from parallel.cluster import Rank
from parallel.config import RunConfig, option
from parallel.config import resolve as read_config
from parallel.errors import FitError, LayoutError
from parallel.failure import Progress
from parallel.launch import launch
from parallel.layout import SCHEDULES, Layout
from parallel.parity import Certificate, References
from parallel.planner import fit
from parallel.resolve import machine_processes, resolve

_COLUMNS = (("strategy", 9), ("layout", 30), ("accumulation", 12), ("loss", 9), ("grad norm", 9), ("parameters", 10))


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(RunConfig):
    """What to prove. Without --strategy or --layout: every strategy, schedule and accumulation that fits."""

    precision: str | None = option(  # type: ignore[assignment]
        None,
        "fp64 for models with kinks (a ReLU at zero flips with the last bit), else fp32",
        group="memory and speed",
        choices=("fp32", "bf16", "fp16", "fp64"),
    )


def main(argv: list[str]) -> int:
    """Print a table of certificates. Returns: 0 when all pass, 1 when one fails."""
    config = read_config(argv, config=VerifyConfig, prog="paralab verify", description=__doc__)
    spec = SPECS[config.model]
    precision = config.precision or ("fp32" if spec.smooth else "fp64")
    config = replace(config, precision=precision, size=config.size or spec.tiny_size)
    nproc = config.nproc or (config.layout.world_size if config.layout else machine_processes())
    runs = list(cases(config, nproc))
    if not runs:
        raise LayoutError("no case fits, see the lines above: change --nproc, --strategy or --engine")
    work = resolve(runs[0])
    model_rules.check(spec, work.model_config)
    work.show_data("train")
    tolerance = parity.tolerance(work)
    print(
        f"{config.model} {config.size} in {precision}, {parity.STEPS} steps of {config.optimizer}, {nproc} "
        f"process{'es' if nproc > 1 else ''} against one in {'fp64' if precision == 'fp64' else 'fp32'}.\n"
        f"Tolerance: loss {tolerance.loss:.0e} and gradient norm {tolerance.grad_norm:.0e}, relative; "
        f"parameters {tolerance.parameters:.1g} of what the steps move them by (taken without warm-up).\n"
    )
    print("  ".join(f"{name:<{width}}" for name, width in _COLUMNS), flush=True)
    certificates = launch("parallel.verify:certify_all", runs, nproc=nproc, config=config)
    failed = [c for c in certificates if not c.passed]
    print(f"\n{len(certificates) - len(failed)} of {len(certificates)} passed")
    return 1 if failed else 0


def cases(config: VerifyConfig, nproc: int) -> Iterator[VerifyConfig]:
    """Yield the cases: what was asked for, or all that fit."""
    if config.layout is not None:
        fit.refuse(resolve(config), force=config.force)
        yield config
        return
    force = config.force or config.size == SPECS[config.model].tiny_size  # these fit
    every = [name for name in strategies.STRATEGIES if (name == "single") == (nproc == 1)]
    names = [config.strategy] if config.strategy else every
    for name in names:
        try:
            layouts = list(_layouts(strategies.layout_of(name, nproc)))
        except LayoutError as error:
            if config.strategy:
                raise
            print(f"{name} left out: {error}")
            continue
        for layout in layouts:
            for accumulation in (1, 2):
                case = replace(config, layout=layout, strategy=None, nproc=None, accumulation=accumulation)
                try:
                    fit.refuse(resolve(case), force=force)
                except (LayoutError, FitError) as error:
                    print(f"{layout} left out: {error}")
                    continue
                yield case


def _layouts(layout: Layout) -> Iterator[Layout]:
    """Yield a layout under every schedule that it may have."""
    if layout.schedule in (None, "naive"):
        yield layout
        return
    for schedule in SCHEDULES.values():
        if schedule.name != "naive":
            yield replace(layout, schedule=schedule.name)


def certify_all(rank: Rank, progress: Progress, runs: list[VerifyConfig]) -> list[Certificate]:
    """Certify each case on this rank; rank 0 prints as it goes."""
    references = References()
    certificates = []
    for run in runs:
        work = resolve(run)
        mesh = cluster.make_mesh(work.layout, rank.device)
        if rank.rank < work.layout.world_size:
            certificate = parity.prove(work, mesh, references.get(work, mesh))
            certificates.append(certificate)
            if rank.is_main:
                print(_line(work.strategy, str(work.layout), run.accumulation, certificate), flush=True)
        if dist.is_initialized():
            dist.barrier()
    return certificates


def _line(strategy: str, layout: str, accumulation: int, c: Certificate) -> str:
    cells = (
        strategy,
        layout,
        str(accumulation),
        f"{c.loss_difference:.1e}",
        f"{c.grad_norm_difference:.1e}",
        f"{c.parameter_difference:.1e}",
    )
    return "  ".join(f"{cell:<{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True)) + f"  {c}"
