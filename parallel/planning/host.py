"""Seconds that the host spends on launching work: where they exceed those of the device, it waits for the host."""

import numpy as np

from paralab.axes.case import CountedCase, Values
from paralab.axes.costs import Pass, Plan

# Operations of a transformer layer in the software that host_forward_s is of: norms, products and their biases, scale,
# mask, softmax, dropouts and residual sums, the activation, changes of layout
LAYER_LAUNCHES = 22


def layer(plan: Plan) -> Pass:
    """Return the host's seconds of one layer in one micro-batch, without collectives. Values or arrays (cases,)."""
    case, k = plan.case, plan.constants
    speed = launch_scale(plan) * np.where(case.is_mixture, 1 + case.mixture_share * (k.host_mixture - 1), 1.0)
    if isinstance(case, CountedCase):
        speed = speed * case.block_launches / LAYER_LAUNCHES
    once = Pass(k.host_forward_s * speed, k.host_backward_s * speed)
    full, selective = case.recompute == "full", case.recompute == "selective"
    return once.again(full + np.where(case.framework == "torchtitan", 0.8, 0.2) * selective)


def launch_scale(plan: Plan) -> Values:
    """Return how the host's work of a layer compares with that of the software and machines of 2021.

    Flash attention came with fewer launches of faster hosts; a compiled layer has few left.
    """
    case, k = plan.case, plan.constants
    return np.where(case.is_compiled, k.host_compiled, np.where(plan.is_of_2021, 1.0, k.host_new))


def micro_batch_s(plan: Plan) -> Values:
    """Return the host's seconds of one micro-batch on a rank apart from its layers; each stage launches messages."""
    case, k = plan.case, plan.constants
    engine = case.is_deepspeed & (case.pp > 1)
    messages_s = np.where(case.pp > 1, (case.vpp - 1) * k.host_collective_s, 0.0)  # more than those of one stage
    return (k.host_micro_batch_s + messages_s) * launch_scale(plan) + np.where(engine, k.host_engine_s, 0.0)


def step_s(plan: Plan, layers: Values) -> Values:
    """Return the host's seconds of a step that nothing hides: the optimizer's launches, zeroing, logging."""
    k = plan.constants
    return launch_scale(plan) * (k.host_step_s + layers * k.host_update_s)
