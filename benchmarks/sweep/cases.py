"""The cases of a sweep: models x batches x process counts x strategies (or layouts) x engines, or variations of one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from typing import Any

from paralab.benchmarks.run import CaseConfig
from paralab.benchmarks.sweep import variations
from paralab.benchmarks.sweep.options import SweepConfig
from paralab.errors import UsageError
from paralab.layout.strategies import STRATEGIES
from paralab.models import label_of
from paralab.models.files import without_size


@dataclass(frozen=True)
class Case:
    """One cell of the sweep: a name for people, and the run that it is."""

    name: str
    config: CaseConfig

    def repeat(self, number: int) -> "Case":
        """Return the case as it is run in one repeat: parity is checked in the first alone."""
        return self if number == 0 else replace(self, config=replace(self.config, parity=False))

    @cached_property
    def command(self) -> str:
        """What its rows say in the column `command`."""
        from paralab.planning.resolve import resolve

        return resolve(self.config).command


def cases_of(config: SweepConfig) -> list[Case]:
    """Return the cases of a sweep, without the batches that `--vary batch` finds. Raises: UsageError without any."""
    named = variations.cases(base_case(config), config.vary) if config.vary else strategies(config)
    cases = [Case(*pair) for pair in named]
    if not cases:
        raise UsageError("no case of this sweep can run: see the lines above, and change --strategies or --nprocs")
    return cases


def strategies(config: SweepConfig) -> Iterator[variations.Named]:
    """Yield models x batches x process counts x strategies (or layouts) x engines, without what does not fit.

    What does not fit is said. One process has strategy single only, where that is one of them, and
    single one process, also where other counts are requested.
    """
    from paralab.planning.resolve import resolve

    for case in _product(config):
        try:
            resolve(case)
        except UsageError as error:
            print(f"{name_of(case)} left out: {error}")
            continue
        yield name_of(case), case


def _product(config: SweepConfig) -> Iterator[CaseConfig]:
    batches: Sequence[int | None] = config.global_batch_sizes or [config.global_batch_size]
    for (model, size), batch in product(models_of(config), batches):
        shared = replace(_shared(config), model=model, size=size, global_batch_size=batch)
        for division, engine in product(_divisions(config), config.engines or [config.engine]):
            yield replace(shared, engine=engine, **division)


def models_of(config: SweepConfig) -> list[tuple[str, str | None]]:
    """Return the models to compare, each with its size where that is given."""
    return [without_size(model) for model in config.models] if config.models else [(config.model, config.size)]


def _divisions(config: SweepConfig) -> Iterator[dict[str, Any]]:
    """Yield the options that divide the work: a layout, or a strategy and a process count."""
    if config.layouts:
        yield from ({"layout": layout, "strategy": None, "nproc": None} for layout in config.layouts)
        return
    from paralab.planning.requested_layout import machine_processes

    counts = config.nprocs or [config.nproc or machine_processes()]
    strategies = config.strategies or list(STRATEGIES)
    if config.strategies and "single" in strategies and 1 not in counts:
        yield {"strategy": "single", "nproc": 1}
    for nproc, strategy in product(counts, strategies):
        if (strategy == "single") == (nproc == 1) or (nproc == 1 and "single" not in strategies):
            yield {"strategy": strategy, "nproc": nproc}


def name_of(case: CaseConfig) -> str:
    """Return the name of a case for people: model, size, division, batch and engine, as far as they are given."""
    division = str(case.layout) if case.layout else f"{case.strategy} x{case.nproc}"
    batch = f"batch {case.global_batch_size}" if case.global_batch_size else ""
    engine = case.engine if case.engine != "auto" else ""
    return " ".join(word for word in (label_of(case.model), case.size, division, batch, engine) if word)


def _shared(config: SweepConfig) -> CaseConfig:
    """Return what all cases share, without what the sweep decides for each."""
    values = {declared.name: getattr(config, declared.name) for declared in fields(CaseConfig)}
    return CaseConfig(**values | {"out": None, "group": None, "repeat": None})


def base_case(config: SweepConfig) -> CaseConfig:
    """Return the case that `--vary` changes: on one process unless another division is requested."""
    shared = _shared(config)
    return shared if shared.layout else replace(shared, strategy=shared.strategy or "single")
