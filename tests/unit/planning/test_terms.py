"""Single terms of a prediction are what they are made of: bytes over a rate, with all else taken away."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paralab.axes.context_parallel.cost import ContextCost
from paralab.axes.costs import Pass, Plan
from paralab.axes.data.cost import DataCost, bytes_per_weight
from paralab.axes.weights import all_weights
from paralab.models.vocabulary import CHUNK_BYTES
from paralab.planning import compute, memory, steptime
from paralab.planning.constants import shipped
from paralab.planning.predict import hidden_share
from paralab.planning.settle import arrays, settle

RATE = 1e6  # bytes per second of the one thing that a case waits for
SHAPE = {"layers": 8, "hidden": 1024, "heads": 16, "kv_heads": 4, "vocab": 32_000, "sequence_length": 4096}
# what is sent or copied reaches its rate, and starts at once
IDEAL = {"link_share": 1, "network_share": 1, "host_link_share": 1, "memory_share_hbm3": 1, "ring_exposed": 1}
IDEAL |= dict.fromkeys(("latency_s", "latency_rank_s", "message_latency_s"), 0)
FREE = 1e30


def plan_of(cells: dict[str, Any], **rates: float) -> Plan:
    """Return the plan of one case on a machine whose links and memories cost nothing, but for these."""
    case, machine = arrays([settle({"gpu": "H100-SXM-80GB", **SHAPE, **cells})])
    free = ("intra_bytes_per_s", "inter_bytes_per_s", "host_bytes_per_s", "memory_bytes_per_s")
    free_but_for = {name: np.array([rates.get(name, FREE)]) for name in free}
    return Plan(case, replace(machine, **free_but_for), shipped().but(IDEAL))


@pytest.mark.parametrize(("style", "heads"), [("ring", 3 * 2 * 4), ("ulysses", 3 / 4 * 2 * (16 + 4))])
def test_context_ranks_pass_on_keys_and_values_or_exchange_heads(style: str, heads: float) -> None:
    """Over 4 ranks: keys and values three times, or three quarters of queries, results, keys and values."""
    plan = plan_of({"cp": 4, "cp_style": style}, intra_bytes_per_s=RATE)
    once_s = 4096 / 4 * heads * 64 * 2 / RATE
    found = ContextCost().in_layer(plan, Pass())
    assert (found.forward_s[0], found.backward_s[0]) == pytest.approx((once_s, 2 * once_s))


def test_groups_of_hybrid_sharding_reduce_what_a_rank_keeps() -> None:
    """An all-reduce in a ring: twice what a rank keeps of the gradients, but for its own share of that."""
    cells = {"dp": 16, "zero": 2, "shard": 4, "gpus_per_node": 4, "dp_overlap": False, "global_batch_size": 16}
    plan = plan_of(cells, inter_bytes_per_s=RATE)
    kept_bytes = 4 * float(all_weights(plan.case)[0]) / 4
    assert DataCost().in_step(plan, Pass())[0] == pytest.approx(2 * 3 / 4 * kept_bytes / RATE)


def test_an_optimizer_on_the_host_takes_gradients_and_gives_weights_back() -> None:
    plan = plan_of({"precision": "bf16"}, host_bytes_per_s=RATE)
    there = plan.of(plan.case.but(offload="optimizer"))
    each = bytes_per_weight(there.case)
    assert (each["gradients"], each["weights"]) == (4, 2)
    assert DataCost().in_step(there, Pass())[0] == pytest.approx(6 * all_weights(plan.case)[0] / RATE)


def test_what_a_layer_keeps_on_the_host_travels_both_ways() -> None:
    plan = plan_of({}, host_bytes_per_s=RATE)
    there = plan.of(plan.case.but(offload="activations"))
    once_s = memory.on_host_bytes(there)[0] / RATE
    waits = steptime.layer(there).waits
    assert once_s > 0 and (waits.forward_s[0], waits.backward_s[0]) == pytest.approx((once_s, once_s))


def test_the_gradient_of_an_embedding_is_a_whole_table() -> None:
    plan = plan_of({"precision": "bf16", "tp": 2}, memory_bytes_per_s=RATE)
    found = compute.embedding(plan)
    assert found.backward_s[0] - 2 * found.forward_s[0] == pytest.approx(2 * 32_000 * 1024 / 2 / RATE)


@pytest.mark.parametrize(
    ("pipeline", "waits"), [({}, 0), ({"pp": 2, "schedule": "1f1b"}, 0), ({"pp": 2, "schedule": "gpipe"}, 7)]
)
def test_losses_wait_for_their_backward_pass_where_it_is_put_off(pipeline: dict[str, Any], waits: int) -> None:
    """Each with the gradients of the output layer and of its input; beside a chunk of logits and one loss at work."""
    plan = plan_of({"framework": "paralab", "precision": "fp32", "global_batch_size": 8} | pipeline)
    words, tokens = 32_000 * 1024, 4096 * 1024
    at_work = CHUNK_BYTES + 4 * words + 8 * tokens
    assert CHUNK_BYTES < 4096 * 32_000 * 4
    assert memory.logit_bytes(plan)[0] == pytest.approx(at_work + waits * 4 * (words + tokens))


@pytest.mark.parametrize(("rank", "neighbours"), [(0, 1), (1, 2), (2, 1)])
def test_a_stage_has_room_for_all_that_its_micro_batches_receive(rank: int, neighbours: int) -> None:
    """From both sides in fp32; an end has one neighbour."""
    own = {"framework": "paralab", "pp": 4, "schedule": "1f1b"}
    few, many = (memory.by_rank(plan_of(own | {"global_batch_size": n}))[rank]["at work"][0] for n in (8, 24))
    assert many - few == pytest.approx(neighbours * 16 * 4096 * 1024 * 4)


@pytest.mark.parametrize("axes", [{}, {"dp": 2}, {"dp": 2, "tp": 2}, {"cp": 2, "pp": 2}, {"dp": 2, "tp": 2, "cp": 2}])
def test_a_device_has_buffers_for_each_kind_of_group(axes: dict[str, int]) -> None:
    plan, k = plan_of(axes), shipped()
    expected = k.mem_context_bytes + len(axes) * k.mem_communicator_bytes
    assert memory.device_bytes(plan, 0.0)[0] == pytest.approx(expected)


def test_a_causal_mask_hides_half_of_attention() -> None:
    case, attention = settle(SHAPE).case, 12 * 8 * 1024 * 4096
    assert hidden_share(case) == pytest.approx(attention / 2 / (6 * all_weights(case) + attention))
