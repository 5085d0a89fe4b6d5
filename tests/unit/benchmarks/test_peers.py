"""The variants of `paralab peers` compute one thing, and what they do not agree on is not compared."""

from itertools import islice
from typing import Any

import pytest
import torch

from paralab import engines
from paralab.benchmarks import baselines, variants
from paralab.benchmarks.peers import PeersConfig, not_measured
from paralab.benchmarks.peers_table import TARGETS, TOLERANCES, disagreements, memory_table, times_table
from paralab.benchmarks.variants import OWN_VARIANTS, VARIANTS, chosen
from paralab.errors import ConfigError, WorldError
from paralab.layout import Layout
from paralab.options.choices import Precision
from paralab.options.flags import resolve as read_config
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.processes.mesh import Mesh
from paralab.records.row import RunRecord

STEPS = 3


def config(**values: Any) -> PeersConfig:
    return PeersConfig(size="tiny", strategy="single", engine="torch", **values)


def results(**step_s: list[float]) -> dict[str, list[dict[str, Any]]]:
    """Return runs of variants by name with _ for spaces; all have the same losses."""
    return {
        variant.replace("_", " "): [{"step_s": value, "losses": [10.0, 9.0], "roofline": 0.5} for value in values]
        for variant, values in step_s.items()
    }


@pytest.mark.parametrize("variant", ["plain loop", "transformers"])
@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_a_baseline_of_one_process_trains_as_ours_does(variant: str, precision: Precision) -> None:
    work = resolve(config(precision=precision))
    mesh = Mesh(Layout(), torch.device("cpu"))
    batches = list(islice(training_batches(work, mesh), STEPS))
    engine = engines.build(work.context(mesh), "torch")
    step = baselines.make_step(variant, work, mesh.device)
    runs = {
        "ours single": [{"losses": [engine.step(batch).loss.item() for batch in batches]}],
        variant: [{"losses": [step(batch) for batch in batches]}],
    }
    assert disagreements(runs, precision) == []
    losses = runs[variant][0]["losses"]
    assert losses[-1] < losses[0] - 0.01  # it trains


def test_a_variant_brings_ours_along_in_order() -> None:
    assert chosen(["transformers", "raw FSDP2"], gpus=None) == [
        "ours single",
        "transformers",
        "ours zero3",
        "raw FSDP2",
    ]
    assert chosen(None, gpus=None) == chosen(None, gpus=2) == list(VARIANTS)


def test_variants_have_a_gpu_for_each_process() -> None:
    assert chosen(None, gpus=1) == ["ours single", "plain loop", "transformers"]
    with pytest.raises(WorldError, match="raw DDP needs 2 GPUs, 1 here"):
        chosen(["raw DDP"], gpus=1)


def test_what_is_left_out_is_said() -> None:
    everything = PeersConfig()
    assert list(not_measured(everything, list(VARIANTS), gpus=None)) == []
    (line,) = not_measured(everything, list(VARIANTS), gpus=2)
    assert line == "memory of the ZeRO stages left out: it needs 4 GPUs, 2 here"
    assert len(list(not_measured(everything, chosen(None, gpus=1), gpus=1))) == len(VARIANTS) - 3 + 1


def test_fabric_is_offered_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "package_of_fabric", lambda: "lightning_fabric")
    assert chosen(None, gpus=None, model="own") == list(OWN_VARIANTS)
    assert chosen(["Fabric FSDP2"], gpus=None, model="own") == ["ours zero3", "Fabric FSDP2"]
    monkeypatch.setattr(variants, "package_of_fabric", lambda: None)
    there = chosen(None, gpus=None, model="own")
    assert there == [variant for variant in OWN_VARIANTS if "Fabric" not in variant]
    lines = list(not_measured(PeersConfig(model="own"), there, gpus=None))
    assert lines[0] == "Fabric DDP left out: it needs Lightning Fabric, type pip install lightning-fabric"
    assert len(lines) == 2  # and nothing of memory, which is measured of gpt2
    with pytest.raises(ConfigError, match="variant Fabric DDP needs Lightning Fabric: type pip install"):
        chosen(["Fabric DDP"], gpus=None, model="own")


def test_an_own_module_refuses_what_its_loops_do_not_take() -> None:
    assert PeersConfig(model="own", steps=2, clip_norm=None, seed=3).size == "small"
    with pytest.raises(ConfigError, match="--model own has no size 124m: use small or tiny"):
        PeersConfig(model="own", size="124m")
    with pytest.raises(ConfigError, match="--precision does not apply to --model own"):
        PeersConfig(model="own", precision="bf16")
    with pytest.raises(ConfigError, match="--global-batch-size 7 for 2 processes"):
        PeersConfig(model="own", global_batch_size=7)
    with pytest.raises(ConfigError, match=r"--model own has no variant plain loop.*: use ours ddp, Accelerate DDP"):
        chosen(["plain loop"], gpus=None, model="own")


def test_an_unknown_variant_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"raw FSDP is unknown \(did you mean raw FSDP2\?\)"):
        PeersConfig(variants=["raw FSDP"])


def test_the_earlier_name_of_variants_says_what_to_type() -> None:
    with pytest.raises(ConfigError, match=r"--arms is unknown \(did you mean --variants\?\)"):
        read_config(["--arms", "plain loop"], config=PeersConfig)


@pytest.mark.parametrize(("step", "factor", "refused"), [(0, 1e-4, True), (1, 1e-4, False), (1, 1e-2, True)])
def test_losses_that_differ_are_not_compared(step: int, factor: float, refused: bool) -> None:
    runs = results(ours_single=[1.0], plain_loop=[2.0])
    runs["plain loop"][0]["losses"][step] *= 1 + factor
    lines = disagreements(runs, "fp32")
    assert bool(lines) == refused
    assert not refused or f"plain loop has loss {runs['plain loop'][0]['losses'][step]:.6f} at step {step}" in lines[0]


def test_a_loss_that_is_not_a_number_is_not_compared() -> None:
    runs = results(ours_single=[1.0], plain_loop=[2.0])
    runs["plain loop"][0]["losses"][1] = float("nan")
    assert disagreements(runs, "fp32")


def test_ratios_are_taken_repeat_by_repeat() -> None:
    # The second repeat ran on a machine twice as slow: a ratio of medians would not be 1.5.
    runs = results(ours_single=[1.0, 2.0, 1.0], plain_loop=[1.5, 3.0, 2.0])
    (line,) = (
        line for line in times_table(runs, config(repeats=3), TARGETS).splitlines() if line.startswith("plain loop")
    )
    assert "1.50x (1.50 to 2.00)" in line and line.endswith("1.2x")


def test_memory_is_set_beside_its_arithmetic() -> None:
    record = RunRecord(
        run_id="a",
        started_at="2026-01-01T00:00:00.000+00:00",
        status="ok",
        strategy_requested="zero1",
        model="gpt2",
        strategy="zero1",
        parameters=2**20,
        memory_parameters_bytes=4 * 2**20,
        memory_gradients_bytes=4 * 2**20,
        memory_optimizer_bytes=2 * 2**20,
        memory_activations_bytes=7 * 2**20,
        memory_buffers_bytes=2**20,
        memory_other_bytes=0,
        memory_state_peak_bytes=11 * 2**20,
        predicted_state_bytes=10 * 2**20,
    )
    row = memory_table([record]).splitlines()[-1].split()
    assert row == ["zero1", "4", "4", "2", "7", "1", "0", "11", *"8 N + 8 N/d = 10".split(), "+10.0%"]
