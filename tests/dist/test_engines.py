"""DeepSpeed and Accelerate compute what one process computes, with every file of ds_configs."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from paralab import cli
from paralab.engines import native
from paralab.layout import Layout
from paralab.models import SPECS
from paralab.options.config import RunConfig
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.processes.mesh import Mesh
from paralab.weights.start_from import start_from
from tests import hugging_face
from tests.dist.workers import Failed, WorkerPool

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
# strategy's layout of each file, on two processes
SHIPPED = {
    "zero1": "dp2/zero1",
    "zero2": "dp2/zero2",
    "zero3": "dp2/zero3",
    "zero3_offload": "dp2/zero3",
    "pipeline": "pp2/mb4",
}


# what Accelerate runs at stages 0 to 3
APART = ["AccelerateEngine", "PluginEngine", "AccelerateEngine", "AccelerateEngine"]


@pytest.fixture(scope="module")
def pair() -> Iterator[WorkerPool]:
    """Two processes: DeepSpeed and Accelerate take all the processes there are."""
    pool = WorkerPool(2)
    yield pool
    pool.close(kill=True)


@pytest.fixture(scope="module")
def alone() -> Iterator[WorkerPool]:
    """One process, which joins no group by itself."""
    pool = WorkerPool(1)
    yield pool
    pool.close(kill=True)


@pytest.fixture(scope="module")
def four() -> Iterator[WorkerPool]:
    pool = WorkerPool(4)
    yield pool
    pool.close(kill=True)


def case(model: str, layout: str, **changes: Any) -> RunConfig:
    # eps: see the parity tests; a step of Adam on rounding noise would be a full one
    return RunConfig(
        model=model,
        size=SPECS[model].tiny_size,
        layout=Layout.parse(layout),
        global_batch_size=16,
        eps=1e-5,
        **changes,
    )


def check(pool: WorkerPool, run: RunConfig, engine: str, built: str, ds_config: str | Path | None = None) -> None:
    """Fail unless every rank built what was requested, and its parity result passed."""
    for name, result in pool.run("tests.dist.engine_cases:parity_result", run, engine, ds_config and str(ds_config)):
        assert name == built
        assert result.passed, result


def test_every_file_is_run() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == SHIPPED.keys()


@pytest.mark.parametrize("name", SHIPPED)
def test_deepspeed_with_each_file(pair: WorkerPool, name: str) -> None:
    built = "PipelineEngine" if name == "pipeline" else "ZeroEngine"
    check(pair, case("gpt2", SHIPPED[name]), "deepspeed", built, CONFIGS / f"{name}.json")


@pytest.mark.parametrize("layout", ["dp1", "dp1/zero1", "dp1/zero2", "dp1/zero3"])
@pytest.mark.parametrize(
    ("engine", "builts"), [("torch", ["NativeEngine"] * 4), ("deepspeed", ["ZeroEngine"] * 4), ("accelerate", APART)]
)
def test_one_process_runs_every_stage(alone: WorkerPool, engine: str, builts: list[str], layout: str) -> None:
    run = case("gpt2", layout, accumulation=2)
    check(alone, run, engine, builts[resolve(run).layout.zero])
    if engine == "torch":
        ((shards,),) = alone.run("tests.dist.engine_cases:sharded", run)
        assert shards == (resolve(run).layout.zero >= 2)


@pytest.mark.parametrize("layout", ["dp2", "dp2/zero1", "dp2/zero2", "dp2/zero3"])
def test_deepspeed_accumulates_in_bf16(pair: WorkerPool, layout: str) -> None:
    check(pair, case("gpt2", layout, accumulation=2, precision="bf16"), "deepspeed", "ZeroEngine")


@pytest.mark.parametrize(("engine", "built"), [("deepspeed", "ZeroEngine"), ("accelerate", "AccelerateEngine")])
def test_a_model_of_transformers(pair: WorkerPool, tmp_path: Path, engine: str, built: str) -> None:
    check(pair, case(f"hf:{hugging_face.write('qwen3', tmp_path / 'qwen3')}", "dp2/zero3"), engine, built)


@pytest.mark.parametrize(
    ("layout", "model"),
    [
        (layout, name)
        for layout in ("dp2/zero2", "pp2/mb4")
        for name, spec in SPECS.items()
        if name != "gpt2" and not any(spec.cannot(spec.config(), axis) for axis in Layout.parse(layout).axes)
    ],
)
def test_deepspeed_trains_every_model(pair: WorkerPool, model: str, layout: str) -> None:
    check(pair, case(model, layout), "deepspeed", "PipelineEngine" if "pp" in layout else "ZeroEngine")


@pytest.mark.parametrize(
    ("engine", "layout"), [("deepspeed", "dp2/zero3"), ("deepspeed", "pp2/mb4"), ("accelerate", "dp2")]
)
def test_waiting_for_a_slow_rank_is_seen(pair: WorkerPool, engine: str, layout: str) -> None:
    slept_s = 1.0
    run = case("gpt2", layout)
    slow, other = pair.run("tests.dist.engine_cases:split_with_a_slow_rank", run, engine, slept_s)
    assert slow.own_s > slept_s and other.exposed_s > 0.9 * slept_s
    assert slow.own_s > other.own_s and slow.exposed_s < other.exposed_s


def test_deepspeed_gathers_every_parameter_when_it_is_used(pair: WorkerPool, tmp_path: Path) -> None:
    """By default it keeps parameters as small as these on every rank, and stage 3 would not show."""
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0}}))
    run = case("gpt2", "dp2/zero3", accumulation=2, checkpointing="full", clip_norm=None)
    check(pair, run, "deepspeed", "ZeroEngine", path)


@pytest.mark.parametrize(("layout", "parameters"), [("dp2/zero1", 4.0), ("dp2/zero3", 4 / 2)])
def test_memory_of_deepspeed(pair: WorkerPool, tmp_path: Path, layout: str, parameters: float) -> None:
    """Every stage keeps a second copy of the parameters that this rank updates, beside the two moments."""
    path = tmp_path / "small_buckets.json"
    buckets = {"reduce_bucket_size": 1000, "stage3_param_persistence_threshold": 0}
    path.write_text(json.dumps({"zero_optimization": buckets}))
    for n, report in pair.run("tests.dist.engine_cases:memory", case("gpt2", layout), "deepspeed", str(path)):
        assert report.rest["parameters"] == pytest.approx(parameters * n, rel=0.01)
        assert report.rest["optimizer"] == pytest.approx(12 / 2 * n, rel=0.01)
        assert report.peak["parameters"] == report.rest["parameters"]


@pytest.mark.parametrize(("layout", "buckets"), [("dp2/zero1", 2), ("dp2/zero2", 1), ("dp2/zero3", 1)])
def test_buckets_are_buffers_not_activations(pair: WorkerPool, tmp_path: Path, layout: str, buckets: int) -> None:
    """Two for stage 1, which fills one while the other is sent."""
    elements = 3_000_000
    path = tmp_path / "buckets.json"
    path.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": elements, "overlap_comm": buckets == 2}}))
    for n, report in pair.run("tests.dist.engine_cases:memory", case("gpt2", layout), "deepspeed", str(path)):
        assert elements > 5 * n  # so that nothing else is as large
        assert 0 <= report.peak["buffers"] - 4 * elements * buckets < 4 * elements
        assert report.peak["activations"] < 4 * elements
        kept = 4 * elements if layout.endswith("zero3") else 0
        assert 0 <= report.rest["buffers"] - kept < 64  # a scalar that was reduced, such as the loss, may be left


@pytest.mark.parametrize("layout", ["dp2/zero1", "dp2/zero3"])
def test_training_starts_from_what_deepspeed_saved(pair: WorkerPool, tmp_path: Path, layout: str) -> None:
    run = case("gpt2", layout, learning_rate=1e-2)
    wanted, _ = pair.run("tests.dist.engine_cases:saved_by_deepspeed", run, str(tmp_path / "saved"))
    words = ["import-deepspeed", str(tmp_path / "saved"), str(tmp_path / "weights")]
    assert cli.main(words) == 2  # pickles are not read unasked
    assert cli.main([*words, "--trust"]) == 0
    work = resolve(replace(run, layout=Layout(), learning_rate=0.0))
    mesh = Mesh(Layout(), torch.device("cpu"))
    engine = native.build(work.context(mesh))
    start_from(engine, tmp_path / "weights")
    _, batch = islice(training_batches(work, mesh), 2)
    assert engine.step(batch).loss.item() == pytest.approx(wanted, rel=1e-6)


def check_relay(pool: WorkerPool, folder: Path, legs: list[tuple[str, str]], model: str, **options: Any) -> None:
    """Fail unless a run handed from engine to engine has the losses of one that was never interrupted."""
    target, steps = "tests.dist.engine_cases:relay", 2
    runs = [(engine, case(model, layout, learning_rate=1e-2, **options)) for engine, layout in legs]
    losses = pool.run(target, runs, str(folder / "relay"), steps, timeout_s=300.0)[0]
    alone = [("torch", case(model, "dp1", learning_rate=1e-2, **options))]
    expected = pool.run(target, alone, str(folder / "alone"), steps * len(legs))[0]
    assert losses == pytest.approx(expected, rel=1e-5)


def test_a_run_goes_from_deepspeed_to_torch_and_back(pair: WorkerPool, tmp_path: Path) -> None:
    legs = [
        ("deepspeed", "dp2/zero1"),
        ("torch", "tp2"),
        ("deepspeed", "dp2/zero3"),
        ("torch", "dp2"),
        ("deepspeed", "dp2/zero2"),
    ]
    check_relay(pair, tmp_path, legs, "gpt2")


def test_a_run_goes_on_where_ranks_do_not_divide_a_parameter(pair: WorkerPool, tmp_path: Path) -> None:
    legs = [("deepspeed", "dp2/zero3"), ("deepspeed", "dp2"), ("torch", "dp2")]
    check_relay(pair, tmp_path, legs, "diffusion", optimizer="sgd")


def test_training_under_deepspeed_evaluates_and_starts_from_weights(pair: WorkerPool, tmp_path: Path) -> None:
    legs = [("torch", case("resnet", "dp2", norm="group", seed=1))]  # other weights than seed 0 has
    pair.run("tests.dist.engine_cases:relay", legs, str(tmp_path), 1)
    got, want = (
        pair.run(
            "tests.dist.engine_cases:evaluated", case("resnet", layout, norm="group"), engine, str(tmp_path / "step-1")
        )[0]
        for engine, layout in (("deepspeed", "dp2/zero3"), ("torch", "dp2"))
    )
    for ours, theirs in zip(got[:2], want[:2], strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.accuracy == theirs.accuracy
    assert got[2] == pytest.approx(want[2], rel=1e-5)


def test_deepspeed_with_sgd(pair: WorkerPool) -> None:
    check(pair, case("gpt2", "dp2/zero1", optimizer="sgd", learning_rate=0.1), "deepspeed", "ZeroEngine")


@pytest.mark.parametrize("layout", ["dp2.pp2/zero1/mb4", "pp4/mb8", "dp4/zero3"])
def test_deepspeed_on_four(four: WorkerPool, layout: str) -> None:
    check(four, case("gpt2", layout), "deepspeed", "PipelineEngine" if "pp" in layout else "ZeroEngine")


@pytest.mark.parametrize(
    ("model", "layout", "precision"),
    [
        ("gpt2", "dp2", "fp32"),
        ("gpt2", "dp2", "bf16"),
        ("gpt2", "dp2/zero2", "fp32"),
        ("gpt2", "dp2/zero3", "bf16"),
        ("resnet", "dp2/zero3", "bf16"),
        ("resnet", "dp2", "fp64"),
        ("diffusion", "dp2/zero3", "fp64"),
    ],
)
def test_accelerate(pair: WorkerPool, model: str, layout: str, precision: str) -> None:
    check(pair, case(model, layout, accumulation=2, precision=precision), "accelerate", "AccelerateEngine")


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero3_offload"])
def test_accelerate_drives_deepspeed(pair: WorkerPool, name: str) -> None:
    run = case("gpt2", SHIPPED[name], accumulation=2)
    check(pair, run, "accelerate", "PluginEngine", CONFIGS / f"{name}.json")


def test_accelerate_refuses_what_its_configuration_is_not(pair: WorkerPool) -> None:
    with pytest.raises(
        Failed, match=r"ConfigError: Accelerate runs deepspeed here, which is --strategy zero1 or zero2"
    ):
        check(pair, case("gpt2", "dp2"), "accelerate", "", CONFIGS / "zero1.json")


def test_accelerate_takes_zero1_from_deepspeed(pair: WorkerPool) -> None:
    check(pair, case("gpt2", "dp2/zero1"), "accelerate", "PluginEngine")
