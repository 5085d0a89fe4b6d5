"""What of data parallelism computes something else than one process does, on purpose, and where it may be used.

Compressed gradients (`--grad-compression`) and local steps (`/localN`) send less for it. No parity is claimed of such a
run: what it loses is measured, as the gap in validation loss to a run that sends everything.
"""

from paralab.errors import ConfigError
from paralab.layout import Layout
from paralab.options.choices import EngineName
from paralab.options.config import RunConfig


def approximation(run: RunConfig, layout: Layout) -> str | None:
    """Say in a few words how a run departs from what one process computes; None where it does not."""
    if run.grad_compression != "none":
        return f"gradients are sent as {run.grad_compression}"
    if layout.local:
        apart = f"data ranks train apart for {layout.local} steps at a time"
        apart += f", in {run.outer_fragments} fragments" if run.outer_fragments > 1 else ""
        return f"{apart} whose messages travel for {run.outer_overlap}" if run.outer_overlap else apart
    return None


def check(run: RunConfig, layout: Layout, engine: EngineName, *, blocks: int) -> None:
    """Raise ConfigError where gradients cannot be compressed, or ranks cannot train apart, as a run says.

    blocks: how many the model has.
    """
    _check_fragments(run, layout, blocks)
    if run.outer_optimizer != "average" and not layout.local:
        raise ConfigError(
            f"--outer-optimizer {run.outer_optimizer} without local steps: it updates what ranks train apart, "
            "write the layout as dp4/local8, or leave it out"
        )
    used = f"--grad-compression {run.grad_compression}" if run.grad_compression != "none" else None
    if layout.local and used:
        raise ConfigError(f"{used} with layout {layout}: its ranks send no gradients, leave one of them out")
    used = used or (f"layout {layout}" if layout.local else None)
    if used is None:
        return
    if engine != "torch":
        raise ConfigError(f"{used} with --engine {engine}, which sends gradients its own way: use --engine torch")
    if run.grad_compression == "none":
        return
    if run.precision not in ("fp32", "bf16"):
        raise ConfigError(f"{used} with --precision {run.precision}: it works on fp32 gradients, use fp32 or bf16")
    if layout.axes != ("dp",) or layout.zero:
        raise ConfigError(
            f"{used} under layout {layout}: DistributedDataParallel compresses what plain data ranks send, use "
            "--strategy ddp in its place with two processes or more, or leave it out"
        )


def _check_fragments(run: RunConfig, layout: Layout, blocks: int) -> None:
    """Raise ConfigError where ranks that train apart cannot meet about so many fragments of a model."""
    count, overlap = run.outer_fragments, run.outer_overlap
    if overlap and (count == 1 or not layout.local or overlap >= layout.local):
        raise ConfigError(
            f"--outer-overlap {overlap} under layout {layout} with --outer-fragments {count}: a fragment's message "
            "arrives before its next one, use fewer steps than the N of /localN and 2 fragments or more, or no overlap"
        )
    if count == 1:
        return
    if not layout.local or run.outer_optimizer != "nesterov":
        raise ConfigError(
            f"--outer-fragments {count} under layout {layout} with --outer-optimizer {run.outer_optimizer}: it is for "
            "DiLoCo, write the layout as dp4/local8 with --outer-optimizer nesterov, or leave it out"
        )
    most = min(layout.local, max(blocks, 1))
    if count > most:
        raise ConfigError(
            f"--outer-fragments {count} with {blocks} blocks and local{layout.local}: each fragment has a block and a "
            f"step of its own, use {most} or fewer"
        )
