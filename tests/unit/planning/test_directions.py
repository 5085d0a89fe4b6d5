"""A case that is changed in one way is predicted to change the right way: on all published cases that it can be."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from paralab.axes.case import Case
from paralab.axes.context_parallel.cost import ContextCost
from paralab.axes.costs import Machine, Pass, Plan
from paralab.axes.data.cost import DataCost
from paralab.axes.pipeline.cost import passes_behind
from paralab.axes.tensor.cost import TensorCost
from paralab.benchmarks.planner.cases import Published, published
from paralab.planning import compute, hardware, host
from paralab.planning.constants import shipped
from paralab.planning.predict import evaluate
from paralab.planning.settle import arrays

Change = Callable[[Case], Mapping[str, Any]]
Which = Callable[[Case], np.ndarray]
SHARE = 0.9  # of the cases have to move the right way, for each change


@pytest.fixture(scope="module")
def cases() -> Published:
    """Every published case, and of the largest table every tenth."""
    every = published()
    few = np.arange(len(every.table)) % 10 == 0
    return every.part((every.table != "vtrain_single_node") | few)


def always(case: Case) -> np.ndarray:
    return case.layers > 0


SLOWER: dict[str, tuple[Which, Change]] = {
    "twice the batch": (always, lambda c: {"global_batch_size": 2 * c.global_batch_size}),
    "twice the layers": (
        always,
        lambda c: {
            n: 2 * getattr(c, n) for n in ("layers", "layers_first", "layers_middle", "layers_last", "layers_held")
        },
    ),
    "twice the MLP": (lambda c: c.experts == 0, lambda c: {"ffn": 2 * c.ffn}),
    "a larger vocabulary": (always, lambda c: {"vocab": 4 * c.vocab}),
    "full recomputation": (lambda c: c.recompute == "none", lambda c: {"recompute": "full"}),
    "selective recomputation": (
        lambda c: (c.recompute == "none") & (c.framework != "llm-foundry"),
        lambda c: {"recompute": "selective"},
    ),
    "scores in separate operations": (lambda c: c.attention == "fused", lambda c: {"attention": "eager"}),
    "no overlap of data parallelism": (lambda c: c.dp_overlap & (c.dp > 1), lambda c: {"dp_overlap": c.dp < 0}),
    "no overlap of tensor parallelism": (lambda c: c.tp_overlap & (c.tp > 1), lambda c: {"tp_overlap": c.tp < 0}),
    "no compilation": (lambda c: c.compile, lambda c: {"compile": c.dp < 0}),
    "optimizer states on the host": (always, lambda c: {"offload": "optimizer"}),
    "all states on the host": (lambda c: (c.zero == 3) & (c.pp == 1), lambda c: {"offload": "parameters"}),
    "activations on the host": (lambda c: c.recompute == "none", lambda c: {"offload": "activations"}),
    "no interleaving": (lambda c: c.schedule == "interleaved", lambda c: {"schedule": "1f1b", "vpp": 1.0}),
}


def share_moved(cases: Published, which: Which, change: Change, *, up: bool) -> float:
    """Return the share of the cases that `which` chooses whose step time moves up (or down) by at least 0.01%."""
    part = cases.part(which(cases.case))
    assert len(part.table) >= 5, "too few cases to say anything"
    before = evaluate(part.case, part.machine).step_time_s
    values = {name: np.broadcast_to(value, before.shape) for name, value in change(part.case).items()}
    after = evaluate(part.case.but(**values), part.machine).step_time_s
    return float(np.mean(after > before * 1.0001 if up else after < before * 0.9999))


@pytest.mark.parametrize("name", SLOWER)
def test_what_is_more_work_or_hides_less_takes_longer(name: str, cases: Published) -> None:
    which, change = SLOWER[name]
    assert share_moved(cases, which, change, up=True) >= SHARE


@pytest.mark.parametrize("schedule", ["zb-h1", "zb-h2", "zb-2p"])
def test_a_smaller_bubble_takes_less(schedule: str, cases: Published) -> None:
    assert share_moved(cases, lambda c: c.schedule == "1f1b", lambda c: {"schedule": schedule}, up=False) >= SHARE


def machine_moved(cases: Published, which: np.ndarray, **factors: float) -> float:
    """Return the share of cases that take longer with some figures of the machine times a factor."""
    part = cases.part(which)
    before = evaluate(part.case, part.machine).step_time_s
    values = {**vars(part.machine)} | {name: getattr(part.machine, name) * by for name, by in factors.items()}
    return float(np.mean(evaluate(part.case, Machine(**values)).step_time_s > before * 1.0001))


@pytest.mark.parametrize("figure", ["peak_flops", "half_flops", "memory_bytes_per_s"])
def test_half_the_device_takes_longer(figure: str, cases: Published) -> None:
    assert machine_moved(cases, cases.case.layers > 0, **{figure: 0.5}) >= SHARE


def test_an_eighth_of_the_network_takes_longer_where_it_is_used(cases: Published) -> None:
    crosses = (cases.case.n_gpus > cases.case.gpus_per_node) & (cases.case.dp * cases.case.pp > 1)
    assert machine_moved(cases, crosses, inter_bytes_per_s=1 / 8) >= SHARE


def test_an_eighth_of_the_network_takes_longer_where_only_some_stages_are_on_other_nodes(cases: Published) -> None:
    within = (cases.case.n_gpus > cases.case.gpus_per_node) & (
        cases.case.n_gpus / cases.case.pp < cases.case.gpus_per_node
    )
    assert machine_moved(cases, within & (cases.case.pp > 1), inter_bytes_per_s=1 / 8) == 1


def test_tensor_ranks_on_several_nodes_hide_nothing_behind_products(cases: Published) -> None:
    """What overlaps reads the memory of its neighbours over the fast links of a node."""

    def waits_s(per_node: float, overlaps: bool) -> np.ndarray:
        plan = plan_of(cases, lambda c: (c.tp == 8) & (c.n_gpus > 8), gpus_per_node=per_node, tp_overlap=overlaps)
        return np.asarray(TensorCost().in_layer(plan, Pass()).forward_s)

    assert np.all(waits_s(8, True) < waits_s(8, False)) and np.all(waits_s(4, True) == waits_s(4, False))


def test_a_host_launches_faster_in_the_nodes_of_later_devices(cases: Published) -> None:
    part = cases.part(cases.table == "vtrain_single_node")  # launching bounds most of it
    later, same = (
        Machine(**{**vars(part.machine), "arch": np.full(len(part.table), arch)}) for arch in ("Hopper", "Ampere")
    )
    launched = [host.layer(Plan(part.case, machine, shipped())).both_s for machine in (later, same)]
    assert launched[0] == pytest.approx(shipped().host_new * launched[1])


def test_launches_of_many_tensor_ranks_wait_for_a_slowest_host_that_is_little_later(cases: Published) -> None:
    """Not as the ranks of one node grow, where it was measured."""
    few, many, most = (
        np.asarray(TensorCost().on_host(plan_of(cases, always, tp=float(ranks))).forward_s) for ranks in (8, 16, 64)
    )
    assert many == pytest.approx(2 * few) and most == pytest.approx(4 * few) and np.all(few > 0)


def test_an_eighth_of_the_link_takes_longer_where_tensor_ranks_use_it(cases: Published) -> None:
    assert machine_moved(cases, cases.case.tp > 1, intra_bytes_per_s=1 / 8) >= SHARE


def test_more_gpus_take_less_for_the_same_batch(cases: Published) -> None:
    """Twice the data ranks, where the batch can still be divided."""
    which = (cases.case.micro_batches >= 2) & (cases.case.micro_batches % 2 == 0)
    change: Change = lambda c: {"dp": 2 * c.dp, "n_gpus": 2 * c.n_gpus}  # noqa: E731
    assert share_moved(cases, lambda c: which, change, up=False) >= SHARE


@pytest.mark.parametrize(
    ("slow", "fast"),
    [
        ("V100-SXM2-32GB", "A100-SXM4-80GB"),
        ("A100-SXM4-80GB", "H100-SXM-80GB"),
        ("H100-96GB-HBM2e-500W", "H100-SXM-80GB"),
        ("H100-SXM-80GB", "H200-SXM-141GB"),
        ("H100-SXM-80GB", "B200-SXM"),
        ("A100-PCIe-80GB", "A100-SXM4-80GB"),
    ],
)
def test_a_newer_device_takes_less(slow: str, fast: str, cases: Published) -> None:
    """Links included; in fp16, which all have."""
    from dataclasses import replace

    times = []
    for name in (slow, fast):
        device = hardware.find(name)
        settled = [
            replace(
                one,
                case=one.case.but(precision="fp16"),
                device=device,
                intra_gbyte_per_s=device.link_gbyte_per_s,
                inter_gbit_per_s=device.network_gbit_per_s,
            )
            for one in cases.settled
        ]
        times.append(evaluate(*arrays(settled)).step_time_s)
    assert np.mean(times[1] < times[0]) >= SHARE


MORE_MEMORY: dict[str, tuple[Which, Change]] = {
    "a larger micro-batch": (lambda c: c.micro_batches >= 2, lambda c: {"micro_batch_size": 2 * c.micro_batch_size}),
    "no recomputation": (lambda c: c.recompute == "full", lambda c: {"recompute": "none"}),
    "replicas": (lambda c: (c.zero == 3) & (c.dp > 1), lambda c: {"zero": 0.0}),
    "a longer sequence": (always, lambda c: {"sequence_length": 2 * c.sequence_length}),
    "twice the ranks in flight": (
        lambda c: (c.schedule == "1f1b") & (c.micro_batches > 2 * c.pp),
        lambda c: {"schedule": "zb-h2"},
    ),
    "all of the device": (lambda c: c.memory_kind == "reserved", lambda c: {"memory_kind": "device"}),
}


@pytest.mark.parametrize("name", MORE_MEMORY)
def test_what_keeps_more_needs_more_memory(name: str, cases: Published) -> None:
    which, change = MORE_MEMORY[name]
    part = cases.part(which(cases.case))
    before = evaluate(part.case, part.machine).memory_gib
    values = {key: np.broadcast_to(value, before.shape) for key, value in change(part.case).items()}
    assert len(before) >= 5 and np.mean(evaluate(part.case.but(**values), part.machine).memory_gib > before) >= SHARE


def plan_of(cases: Published, which: Which, rank_s: float = 0.0, **values: Any) -> Plan:
    """Return some of the cases, at least 5, with other values, and collectives that begin at once but for rank_s."""
    part = cases.part(which(cases.case))
    assert len(part.table) >= 5, "too few cases to say anything"
    every = {name: np.full(len(part.table), value) for name, value in values.items()}
    return Plan(part.case.but(**every), part.machine, shipped().but({"latency_s": 0.0, "latency_rank_s": rank_s}))


def test_tensor_ranks_gather_8_bits_and_scatter_16(cases: Published) -> None:
    """Three quarters of the bytes; what is not divided along the sequence is summed in 16 bits."""
    seconds = {
        (precision, divided): TensorCost()
        .in_layer(plan_of(cases, lambda c: c.tp > 1, precision=precision, sequence_parallel=divided), Pass())
        .forward_s
        for precision in ("bf16", "fp8")
        for divided in (True, False)
    }
    assert seconds["fp8", True] == pytest.approx(0.75 * seconds["bf16", True])
    assert np.all(seconds["fp8", False] == seconds["bf16", False])


def test_products_of_megatron_core_add_gradients_themselves(cases: Published) -> None:
    own, apart = (
        compute.accumulate_s(plan_of(cases, always, framework=name), 1e9) for name in ("megatron-core", "megatron-lm")
    )
    assert np.all(own < 0.5 * apart)


def test_stages_that_take_turns_hide_more_of_what_data_ranks_send(cases: Published) -> None:
    plan = plan_of(cases, lambda c: (c.schedule == "interleaved") & (c.dp > 1) & c.dp_overlap)
    behind = passes_behind(plan.case)
    assert np.all((behind > 1) & (behind < plan.case.micro_batches))
    waits = [DataCost().in_step(plan, Pass(1e-4, 2e-4).times(factor)) for factor in (1, behind)]
    assert np.all(waits[1] < waits[0])


def test_a_ring_of_more_ranks_begins_later(cases: Published) -> None:
    """Both of so many that each passes on nearly all of the weights."""
    few, many = (
        DataCost().in_layer(plan_of(cases, lambda c: (c.zero == 3) & (c.pp == 1), 1e-5, dp=dp), Pass()).forward_s
        for dp in (1024.0, 8192.0)
    )
    assert np.all(many > few + 0.03)


def test_deepspeed_reduces_gradients_in_buckets_and_not_by_layer(cases: Published) -> None:
    """Where a layer is less than a bucket, so that fewer rings begin."""

    def small(case: Case) -> np.ndarray:
        return (case.dp > 1) & (case.hidden < 4096) & (case.experts == 0)

    by_layer, in_buckets = (
        plan_of(cases, small, 1e-3, zero=2, pp=1, framework=name, dp_overlap=False)
        for name in ("torchtitan", "deepspeed")
    )
    seconds = [DataCost().in_layer(plan, Pass()).backward_s for plan in (by_layer, in_buckets)]
    assert np.all(seconds[1] < seconds[0])


def test_each_round_of_a_ring_is_launched_and_meets_a_part_of_the_keys(cases: Published) -> None:
    """Ulysses exchanges once, and has whole sequences of some heads."""

    def of_ranks(style: str, ranks: float) -> Plan:
        return plan_of(cases, always, attention="flash2", recompute="none", cp=ranks, cp_style=style)

    for style, rounds in (("ring", 7), ("ulysses", 1)):
        few, many = of_ranks(style, 2.0), of_ranks(style, 8.0)
        launches = [ContextCost().on_host(plan).forward_s for plan in (few, many)]
        assert launches[1] == pytest.approx(rounds * launches[0]) and np.all(launches[0] > 0)
        work = [2 * compute.attention(few).forward_s, 8 * compute.attention(many).forward_s]
        assert np.all(work[1] > work[0]) if rounds > 1 else work[1] == pytest.approx(work[0])
