"""Seconds of one optimizer step: device, host, and what every axis adds. Values or arrays (cases,)."""

from dataclasses import dataclass

import numpy as np

from paralab.axes import all_axes
from paralab.axes.case import Values
from paralab.axes.costs import AxisCost, Pass, Plan, host_copy_s, smooth_max
from paralab.axes.data.cost import updated_weights
from paralab.axes.pipeline.cost import Ranks, bubble_s, is_v_shaped, passes_behind, schedule_s
from paralab.axes.weights import local_dense, local_embedding, local_experts, local_output
from paralab.planning import compute, host, memory

BOUNDS = ("host", "compute", "memory", "link", "bubble")


def costs() -> tuple[AxisCost, ...]:
    """Return what every way of splitting adds, innermost first: an outer one hides behind what the inner ones take."""
    return tuple(axis.cost() for axis in reversed(all_axes()))


@dataclass(frozen=True)
class Layer:
    """Seconds of one layer in one micro-batch. device: busy. waits: for links. host: launching."""

    device: Pass
    waits: Pass
    host: Pass

    @property
    def forward_s(self) -> Values:
        """Seconds of the forward pass on the device."""
        return self.device.forward_s + self.waits.forward_s


@dataclass(frozen=True)
class Step:
    """Seconds of a step, and of what it waits for once. ranks: of one micro-batch on each kind of rank."""

    total_s: Values
    ranks: Ranks
    bubble_s: Values
    once_s: Values
    layer: Layer


def step_time_s(plan: Plan) -> Values:
    """Return the seconds of an optimizer step."""
    return step(plan).total_s


def step(plan: Plan) -> Step:
    """Return the seconds of an optimizer step with its parts."""
    case = plan.case
    one = layer(plan)
    ranks = all_ranks(plan, one)
    passes_s = schedule_s(plan, ranks)
    # communication of a step hides behind the passes of a micro-batch, which wait for the host where it is slow
    forward_s = smooth_max(one.forward_s, one.host.forward_s, plan.constants.smooth_power) * case.layers / case.pp
    forward_s = np.minimum(forward_s, ranks.slowest_s)
    busy = Pass(forward_s, ranks.slowest_s - forward_s).times(passes_behind(case))
    waits_s = sum(cost.in_step(plan, busy) for cost in costs())
    update_s = compute.optimizer_s(plan, updated_weights(case)) + host.step_s(plan, case.layers / case.pp)
    return Step(passes_s + waits_s + update_s, ranks, bubble_s(case, ranks), waits_s, one)


def layer(plan: Plan) -> Layer:
    """Return the seconds of a layer, all axes included."""
    device = compute.layer(plan)
    waits, on_host = Pass(), host.layer(plan)
    for cost in costs():
        waits += cost.in_layer(plan, device + waits)
        on_host += cost.on_host(plan)
    # each tensor that a layer keeps is waited for on its way to the host and back (torch's save_on_cpu)
    moved_s = host_copy_s(plan, memory.on_host_bytes(plan))
    return Layer(device, waits + Pass(moved_s, moved_s), on_host)


def all_ranks(plan: Plan, one: Layer) -> Ranks:
    """Return the seconds of a micro-batch on the first, a middle and the last rank, and of all one after the other.

    one: the average layer of the model.
    """
    case = plan.case
    embedding_s, output_s = compute.embedding(plan).both_s, compute.output(plan).both_s
    both = is_v_shaped(case) | (case.pp == 1)
    embedding, output = local_embedding(case), np.where(case.pp == 1, local_output(case), 0.0)
    plans = (plan.of_rank(rank) for rank in ("first", "middle", "last"))
    first, middle, last = ((of, one if of is plan else layer(of)) for of in plans)
    first_s = _rank_s(*first, case.layers_first, embedding_s + np.where(both, output_s, 0.0), embedding + output)
    middle_s = _rank_s(*middle, case.layers_middle, 0.0, 0.0)
    last_s = _rank_s(*last, case.layers_last, np.where(both, 0.0, output_s), local_output(case))
    average = (case.layers - case.layers_first - case.layers_last) / np.maximum(case.pp - 2, 1)
    between_s = (case.pp - 2) * _rank_s(*middle, average, 0.0, 0.0)
    total_s = first_s + np.where(case.pp > 1, last_s, 0.0) + np.where(case.pp > 2, between_s, 0.0)
    middle_s, last_s = np.where(case.pp > 2, middle_s, 0.0), np.where(case.pp > 1, last_s, 0.0)
    return Ranks(first_s, middle_s, last_s, total_s)


def _rank_s(plan: Plan, one: Layer, layers: Values, ends_s: Values, ends: Values) -> Values:
    """Return the seconds of a micro-batch on a rank: the slower of device and host.

    ends_s: of the embedding and the output layer there, whose weights are `ends`.
    """
    case, k = plan.case, plan.constants
    weights = layers * (local_dense(case) + local_experts(case)) + ends
    device_s = layers * (one.device + one.waits).both_s + ends_s + compute.accumulate_s(plan, weights)
    host_s = layers * one.host.both_s + host.micro_batch_s(plan)
    return smooth_max(device_s, host_s, k.smooth_power)


def bound(plan: Plan, done: Step) -> Values:
    """Return what most of a step goes into: one of `BOUNDS`, as text or an array (cases,) of text."""
    case, one = plan.case, done.layer
    micro_batches = case.micro_batches * case.layers / case.pp
    products_s = compute.products(plan).both_s + np.where(case.keeps_scores, 0.0, compute.attention(plan).both_s)
    busy_s = one.device.both_s
    products_s = np.minimum(products_s, busy_s)
    on_device = busy_s + one.waits.both_s
    seconds = np.stack(
        np.broadcast_arrays(
            np.where(one.host.both_s > on_device, micro_batches * one.host.both_s, 0.0),
            micro_batches * products_s,
            micro_batches * (busy_s - products_s),
            micro_batches * one.waits.both_s + done.once_s,
            done.bubble_s,
        )
    )
    return np.array(BOUNDS)[np.argmax(seconds, axis=0)]


def causes(plan: Plan, done: Step) -> dict[str, Values]:
    """Return the seconds of a step by what they go into, which add up to it: each of `BOUNDS`, a value or (cases,).

    They are those of the slowest rank. compute: matrix products and flash attention. memory: operations that only move
    bytes. host: what the device waits for launches. link: communication that is not hidden.
    """
    ranks = np.stack(np.broadcast_arrays(done.ranks.first_s, done.ranks.middle_s, done.ranks.last_s))
    slowest, case = np.argmax(ranks, axis=0), plan.case
    share = _of(slowest, case.mixture_first, case.mixture_middle, case.mixture_last)
    theirs = plan.of(case.with_mixture(share))
    plan, case, one = theirs, theirs.case, done.layer if theirs is plan else layer(theirs)
    layers = _of(slowest, case.layers_first, case.layers_middle, case.layers_last)
    output, both = compute.output(plan), is_v_shaped(case) | (case.pp == 1)
    product_s = compute.output_product(plan).both_s
    ends_s = compute.embedding(plan).both_s + np.where(both, output.both_s, 0.0)
    last_s = np.where(both, 0.0, output.both_s)
    ends = local_embedding(case) + np.where(case.pp == 1, local_output(case), 0.0)
    weights = layers * (local_dense(case) + local_experts(case)) + _of(slowest, ends, 0.0, local_output(case))
    has_output = _of(slowest, np.where(both, 1.0, 0.0), 0.0, np.where(both, 0.0, 1.0))
    core_s = np.where(case.keeps_scores, 0.0, compute.attention(plan).both_s)
    products_s = np.minimum(compute.products(plan).both_s + core_s, one.device.both_s)
    compute_s = layers * products_s + has_output * product_s
    memory_s = layers * (one.device.both_s - products_s) + _of(slowest, ends_s, 0.0, last_s) - has_output * product_s
    memory_s = memory_s + compute.accumulate_s(plan, weights)
    link_s = layers * one.waits.both_s
    m = case.micro_batches
    update_s = compute.optimizer_s(plan, updated_weights(case))
    found = {
        "compute": m * compute_s,
        "memory": m * memory_s + update_s,
        "link": m * link_s + done.once_s,
        "bubble": done.bubble_s,
    }
    return found | {"host": np.maximum(done.total_s - sum(found.values()), 0.0)}


def _of(slowest: Values, first: Values, middle: Values, last: Values) -> Values:
    """Return what belongs to the slowest rank. slowest: 0, 1 or 2, of the first, a middle and the last one."""
    return np.choose(slowest, np.stack(np.broadcast_arrays(first, middle, last, 1.0 * slowest))[:3])
