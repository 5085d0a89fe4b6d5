"""Memory in closed form is that of the papers it comes from, to the last digit that they print."""

from dataclasses import replace

import pytest

from paralab.axes.costs import GIB, Constants, Plan
from paralab.axes.data.cost import Weights, state_bytes
from paralab.axes.pipeline.cost import in_flight, waiting
from paralab.axes.pipeline.passes import pass_order
from paralab.layout import schedules
from paralab.planning import memory
from paralab.planning.constants import shipped
from paralab.planning.predict import evaluate
from paralab.planning.settle import arrays, settle

MODELS = {  # Korthikanti et al. 2022, table 3: heads, hidden, layers, tp, pp, vpp, micro-batch
    "22B": (64, 6144, 48, 8, 1, 1, 4),
    "175B": (96, 12288, 96, 8, 8, 3, 1),
    "530B": (128, 20480, 105, 8, 35, 3, 1),
    "1T": (160, 25600, 128, 8, 64, 1, 1),
}


def plan_of(**cells: object) -> Plan:
    """Return the plan of one case."""
    case, machine = arrays([settle({"gpu": "A100-SXM4-80GB", **cells})])
    return Plan(case, machine, shipped())


@pytest.mark.parametrize(
    ("model", "recompute", "parallel", "gib"),
    [  # figure 1, as its closed form gives it (calculon, validation.py)
        ("22B", "none", False, 59.25),
        ("22B", "selective", True, 9.5625),
        ("175B", "none", False, 66.84375),
        ("175B", "selective", True, 12.3515625),
        ("530B", "none", False, 114.0234375),
        ("530B", "selective", True, 23.076171875),
        ("1T", "none", False, 131.25),
        ("1T", "selective", True, 26.5625),
    ],
)
def test_activations_are_those_of_korthikanti_2022(model: str, recompute: str, parallel: bool, gib: float) -> None:
    heads, hidden, layers, tp, pp, vpp, micro = MODELS[model]
    plan = plan_of(
        layers=layers,
        hidden=hidden,
        heads=heads,
        vocab=51200,
        tp=tp,
        pp=pp,
        vpp=vpp,
        micro_batch_size=micro,
        global_batch_size=micro * pp * 8,
        recompute=recompute,
        sequence_parallel=parallel,
        attention="fused",
        framework="megatron-lm",
    )
    kept = in_flight(plan.case, 0) * layers / pp * memory.kept_bytes(plan) / GIB
    assert kept[0] == pytest.approx(gib, rel=0.03)


@pytest.mark.parametrize(
    ("zero", "dp", "gb"),
    [(0, 4, 120), (1, 4, 52.5), (1, 64, 31.4), (2, 4, 41.3), (2, 64, 16.6), (3, 4, 30), (3, 64, 1.88), (3, 1024, 0.12)],
)
def test_states_are_those_of_rajbhandari_2020(zero: int, dp: int, gb: float) -> None:
    """Table 1: 7.5 billion weights with 2 + 2 + 12 bytes."""
    plan = plan_of(
        layers=1,
        hidden=128,
        dp=dp,
        zero=zero,
        precision="bf16",
        gradient_precision="bf16",
        framework="deepspeed" if zero == 3 else "",
    )
    assert state_bytes(plan, Weights(7.5e9))[0] / 1e9 == pytest.approx(gb, rel=0.01, abs=0.005)


def test_fp16_in_megatron_takes_20_bytes_a_weight() -> None:
    plan = plan_of(layers=1, hidden=128, precision="fp16", framework="megatron-lm")
    assert state_bytes(plan, Weights(1.0))[0] == 20


@pytest.mark.parametrize(
    ("schedule", "rank", "kept"),
    [("1f1b", 0, 4), ("1f1b", 3, 1), ("gpipe", 3, 16), ("zb-h1", 1, 4), ("zb-h2", 0, 7), ("zbv", 0, 4)],
)
def test_micro_batches_in_flight(schedule: str, rank: int, kept: int) -> None:
    plan = plan_of(layers=8, hidden=128, pp=4, schedule=schedule, global_batch_size=16)
    assert in_flight(plan.case, rank)[0] == kept


@pytest.mark.parametrize(
    ("word", "schedule", "vpp"),
    [
        ("1f1b", "1f1b", 1),
        ("interleavedx2", "interleaved", 2),
        ("zero-bubblex1", "zb-h1", 1),
        ("zero-bubblex4", "zb-1p", 4),
        ("zbv", "zbv", 2),
        ("dualpipev", "dualpipev", 2),
    ],
)
def test_what_is_kept_and_what_waits_is_that_of_the_order_of_the_passes(word: str, schedule: str, vpp: int) -> None:
    """On the first and on the last rank, at the moment when most is kept, as torch orders the passes."""
    raw = {"layers": 16, "hidden": 128, "pp": 4, "schedule": schedule, "vpp": vpp, "global_batch_size": 16}
    case, order = plan_of(**raw).case, pass_order(word, pp=4, micro_batches=16)
    found = schedules.find(word)
    assert found is not None
    for rank in (0, 3):
        forward = [one.stage for one in order[rank] if one.kind == "F"]
        assert found.stages_of(rank, 4) == tuple(dict.fromkeys(sorted(forward)))
        assert len(forward) == 16 * len(set(forward))  # each micro-batch once in each stage
        alive, halves, most = 0, 0, (0, 0)
        for one in order[rank]:
            alive += one.kind == "F"
            halves += one.kind == "I" and one.stage > 0
            most = max(most, (alive, halves), key=lambda held: held[0] + 0.6 * held[1])
            alive -= one.kind in "BW"
            halves -= one.kind == "W" and one.stage > 0
        assert in_flight(case, rank)[0] == pytest.approx(most[0] / vpp, abs=0.51)
        assert waiting(case, rank)[0] == pytest.approx(most[1] / vpp, abs=0.51)


def test_the_fullest_rank_counts() -> None:
    """Of two stages, the one that is given most layers, and not the average."""
    even = plan_of(layers=32, hidden=4096, pp=2, global_batch_size=16, layers_per_stage=(16, 16))
    uneven = plan_of(layers=32, hidden=4096, pp=2, global_batch_size=16, layers_per_stage=(24, 8))
    assert memory.allocated_bytes(uneven)[0] > 1.3 * memory.allocated_bytes(even)[0]


def test_experts_are_divided_by_expert_ranks() -> None:
    shared = {"layers": 8, "hidden": 1024, "experts": 64, "experts_per_token": 2, "expert_ffn": 4096, "dp": 8}
    whole, divided = (memory.allocated_bytes(plan_of(**shared, ep=ep))[0] for ep in (1, 8))
    assert divided < 0.3 * whole


def test_constants_that_are_not_there_are_said() -> None:
    with pytest.raises(AttributeError, match="no constant 'speed'"):
        _ = Constants({}).speed


@pytest.mark.parametrize(("zero", "each"), [(0, 2 + 4), (1, 2 + 4), (2, 2 + 4 / 8), (3, (4 + 4) / 8)])
def test_offloaded_optimizer_states_leave_weights_and_gradients(zero: int, each: float) -> None:
    """In bf16 over 8 ranks; the shards of FSDP are in fp32."""
    plan = plan_of(layers=2, hidden=64, dp=8, zero=zero, precision="bf16")
    there = Plan(plan.case.but(offload="optimizer"), plan.machine, plan.constants)
    assert state_bytes(there, Weights(1000.0)) == pytest.approx(1000 * each)
    assert state_bytes(plan, Weights(1000.0)) > 1000 * each


def test_what_lies_on_the_host_takes_no_memory_of_the_device() -> None:
    """All states, or what layers keep for backward; the slower the link to the host, the longer both take."""
    plan = plan_of(layers=24, hidden=2048, heads=16, dp=8, zero=3, framework="paralab", global_batch_size=8)
    parts = {
        what: memory.by_rank(Plan(plan.case.but(offload=what), plan.machine, plan.constants))[0]
        for what in ("", "parameters", "activations")
    }
    assert parts["parameters"]["states"][0] == 0 < parts[""]["states"][0]
    assert parts["activations"]["activations"][0] < 0.1 * parts[""]["activations"][0]
    slow = replace(plan.machine, host_bytes_per_s=plan.machine.host_bytes_per_s / 8)
    for what in ("optimizer", "parameters", "activations"):
        case = plan.case.but(offload=what)
        assert evaluate(case, slow).step_time_s[0] > 1.2 * evaluate(case, plan.machine).step_time_s[0]


@pytest.mark.parametrize("kind", ["device", "allocated", "reserved"])
def test_what_fits_is_decided_on_the_safe_side_of_the_whole_device(kind: str) -> None:
    """Whatever figure a source states; software that keeps scores is given logits in fp32."""
    shape = {"layers": 24, "hidden": 2048, "heads": 16, "vocab": 256_000}
    plan = plan_of(**shape, attention="fused", framework="megatron-lm", memory_kind=kind)
    safe = float(memory.safe_bytes(plan)[0])
    assert safe > 1.05 * memory.device_bytes(plan, memory.allocated_bytes(plan))[0]
    for room, fits in ((safe, True), (safe - 1, False)):
        assert evaluate(plan.case, replace(plan.machine, memory_bytes=room)).fits[0] == fits


@pytest.mark.parametrize(("schedule", "times"), [("zb-h1", 1.0), ("zb-1p", 1.0), ("zb-h2", 15 / 8), ("zb-2p", 15 / 8)])
def test_zero_bubble_keeps_what_its_paper_says_and_pytorch_more(schedule: str, times: float) -> None:
    """Qi et al. 2023, table 1: as much as 1F1B, or 2p - 1 micro-batches for p, of what layers keep on the fullest rank.

    Autograd of PyTorch frees nothing between the halves of a backward pass that is split.
    """
    shape = {"layers": 32, "hidden": 4096, "heads": 32, "pp": 8, "n_gpus": 8, "global_batch_size": 64}

    def kept(framework: str, schedule: str) -> float:
        parts = memory.by_rank(plan_of(**shape, framework=framework, schedule=schedule))
        return max(float(rank["activations"][0]) for rank in parts)

    assert kept("megatron-lm", schedule) == pytest.approx(times * kept("megatron-lm", "1f1b"))
    assert kept("paralab", schedule) > 1.1 * times * kept("paralab", "1f1b")
