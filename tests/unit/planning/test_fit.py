"""What does not fit into this machine is refused before any process starts, with what would fit."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from paralab.benchmarks import tour_worker as tour
from paralab.errors import FitError
from paralab.models import SPECS
from paralab.options.config import RunConfig
from paralab.parity import scope
from paralab.planning import fit
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh
from paralab.processes.rank import Rank

FORKED = Rank.from_env()


def work_of(**options: Any) -> Work:
    return resolve(RunConfig(**options))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets the free memory of this machine, in GB; two cores."""
    monkeypatch.setattr(fit, "cores_allowed", lambda: 2.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return lambda gb: monkeypatch.setattr(fit, "memory_available_bytes", lambda: int(gb * 1e9))


def test_states_and_idle_processes_are_counted(free: Any) -> None:
    work = work_of(size="124m", strategy="zero1", nproc=2)
    weights = 4 * work.n_parameters
    takes = 2 * (2 * weights + 2 * weights / 2 + 80e6)  # weights and gradients whole, moments shared
    for gb, fits in ((takes / 1e9 + 0.01, True), (takes / 1e9 - 0.01, False)):
        free(gb)
        assert fit.fits(work, FORKED) is fits


def test_a_machine_of_several_counts_the_processes_that_it_has(free: Any) -> None:
    work, rank = work_of(size="124m", layout="dp4"), Rank(0, 4, 0, 2, "torchrun")
    takes = 2 * 4 * 4 * work.n_parameters  # weights, gradients and two moments, of two ranks of four
    for gb, fits in ((takes / 1e9 + 0.01, True), (takes / 1e9 - 0.01, False)):
        free(gb)
        assert fit.fits(work, rank) is fits


def test_the_smallest_gpu_of_a_machine_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    sizes = [SimpleNamespace(total_memory=size) for size in (80_000, 40_000, 60_000)]
    monkeypatch.setattr(torch.cuda, "get_device_properties", sizes.__getitem__)
    assert fit._gpu_bytes() == 38_000


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"size": "gpt3-6.7b", "strategy": "single"}, "use --size 774m, or --force"),
        ({"size": "774m", "strategy": "ddp", "nproc": 2}, "use --size gpt3-350m or --layout dp2/zero3, or --force"),
        ({"size": "124m", "layout": "tp12.dp20"}, "use fewer processes, or a machine with more memory, or --force"),
    ],
)
def test_a_refusal_says_what_would_fit(free: Any, options: dict[str, Any], advice: str) -> None:
    free(19)
    work = work_of(**options)
    with pytest.raises(FitError, match="GB in all; 19.0 GB of this machine's memory are free: " + advice + "$"):
        fit.check(work)
    fit.check(work, force=True)


def test_what_is_advised_fits_with_room(free: Any) -> None:
    free(19)
    for size in ("774m", "gpt3-350m"):
        assert fit.fits(work_of(size=size, strategy="single"), FORKED, within=0.7)


@pytest.mark.parametrize("model", list(SPECS))
def test_defaults_are_not_refused_while_a_gigabyte_is_free(free: Any, model: str) -> None:
    free(1)
    for size in (SPECS[model].default_size, SPECS[model].tiny_size):
        works, left_out = tour.choose(tour.TourConfig(model=model, size=size), 4)
        assert works and not any("GB" in reason for reason in left_out.values())


def test_crowded_cores_are_said_and_not_refused(free: Any, capsys: pytest.CaptureFixture[str]) -> None:
    free(24)
    fit.check(work_of(size="tiny", strategy="ddp", nproc=16))
    assert not capsys.readouterr().err
    fit.check(work_of(size="tiny", strategy="ddp", nproc=17, global_batch_size=17))
    assert capsys.readouterr().err.startswith("paralab: 17 processes on 2 core(s) take turns")


@pytest.mark.parametrize(
    ("model", "size", "blocks", "least"),
    [("gpt2", "124m", 2, 2), ("diffusion", "dit-b/2", 3, 3), ("resnet", "50", 6, 6), ("resnet", "50", 2, 4)],
)
def test_a_model_with_fewer_blocks_has_its_own_width(model: str, size: str, blocks: int, least: int) -> None:
    spec, config = SPECS[model], SPECS[model].config(size)
    assert spec.with_blocks is not None
    short = spec.with_blocks(config, blocks)
    parameters = spec.on_meta(short).named_parameters()
    assert {name.split(".")[1] for name, _ in parameters if name.startswith("blocks.")} == set(map(str, range(least)))
    assert len(spec.blocks(short)) == least
    whole = dict(spec.on_meta(config).named_parameters())
    for name, parameter in spec.on_meta(short).named_parameters():
        if not name.startswith("blocks."):
            assert parameter.shape == whole[name].shape, name


@pytest.mark.parametrize(
    ("options", "activations_mb"),  # as the census of memory measured them
    [
        ({"size": "nano", "global_batch_size": 4}, 147),
        ({"size": "nano", "global_batch_size": 1, "seq_len": 1024}, 268),
        ({"model": "resnet", "size": "20"}, 78),
        ({"model": "diffusion", "size": "dit-mnist"}, 269),
    ],
)
def test_activations_are_estimated_within_a_fifth(options: dict[str, Any], activations_mb: float) -> None:
    assert scope.activation_bytes(work_of(strategy="single", **options)) / 1e6 == pytest.approx(activations_mb, rel=0.2)


def test_what_is_proved_depends_on_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(size="tiny", strategy="single", global_batch_size=16)
    mesh = Mesh(work.layout, torch.device("cpu"))
    told = []
    for free_mb in (100, 3.9, 1.5, 0.1):
        monkeypatch.setattr(scope, "memory_available_bytes", lambda free_mb=free_mb: int(free_mb * 1e6))
        told.append(scope.describe(scope.choose(work, mesh, processes=1), work))
    assert told == ["whole", "1 of 16 samples", "2 of 8 blocks, 1 of 16 samples", scope.NOT_PROVEN]
