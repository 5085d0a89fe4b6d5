"""What runs the optimizer step: torch itself, DeepSpeed or Accelerate.

All of them train the same weights on the same batches with the same optimizer, so that they can be compared and
held against the same reference. Nothing is imported from an engine before it is chosen.
"""

from pathlib import Path

from parallel.errors import ConfigError, LayoutError
from parallel.layout import Layout
from parallel.spec import BuildContext, Engine

ABLE = {
    "torch": "every strategy",
    "deepspeed": "ddp, zero1, zero2, zero3, and 1f1b pipelines (with zero1 over several data ranks)",
    "accelerate": "ddp, zero1 (by its DeepSpeed plugin, as zero2 and zero3 with --ds-config), zero2 and zero3 (FSDP2)",
}
_PRECISIONS = {
    "torch": ("fp32", "bf16", "fp16", "fp64"),
    "deepspeed": ("fp32", "bf16"),
    "accelerate": ("fp32", "bf16", "fp64"),
}


def choose(engine: str, *, launcher: str, layout: Layout, precision: str, ds_config: str | Path | None = None) -> str:
    """Return the engine to use: the one asked for, or for `auto` the launcher's own where it is able, else torch.

    A DeepSpeed file under a launcher without an engine of its own is as good as asking for DeepSpeed.
    Raises: LayoutError or ConfigError when the engine asked for cannot run the layout.
    """
    if engine == "auto" and ds_config is not None and launcher != "accelerate":
        engine = "deepspeed"
    if engine == "auto":
        own = launcher if launcher in ABLE else "torch"
        return own if _runs(own, layout) and precision in _PRECISIONS[own] else "torch"
    if not _runs(engine, layout):
        raise LayoutError(
            f"--engine {engine} cannot run layout {layout}: it runs {ABLE[engine]}; use one of these, or --engine torch"
        )
    if precision not in _PRECISIONS[engine]:
        able = " or ".join(_PRECISIONS[engine])
        raise ConfigError(f"--engine {engine} does not run --precision {precision}: use {able}, or --engine torch")
    return engine


def build(context: BuildContext, engine: str, *, ds_config: str | Path | None = None) -> Engine:
    """Build an engine on this rank, whose process group has been joined.

    ds_config: DeepSpeed's JSON file, for `deepspeed` and for the plugin of `accelerate`.
    Raises: ConfigError when a configuration file and the run disagree; WorldError when an engine sees other processes.
    """
    if engine == "deepspeed":
        from parallel.engines.deepspeed import build_deepspeed

        return build_deepspeed(context, ds_config)
    if engine == "accelerate":
        from parallel.engines.accelerate import build_accelerate

        return build_accelerate(context, ds_config)
    if ds_config is not None:
        raise ConfigError(f"--ds-config {ds_config} with --engine torch: leave it out, or use --engine deepspeed")
    from parallel import strategies

    return strategies.build(context)


def offloaded(ds_config: str | Path | None) -> str:
    """Return what a DeepSpeed file keeps in the memory of the host, `none` without a file. Raises: ConfigError."""
    if ds_config is None:
        return "none"
    from parallel.engines import deepspeed_config

    return deepspeed_config.offloaded(deepspeed_config.read(ds_config))


def _runs(engine: str, layout: Layout) -> bool:
    if engine == "deepspeed":
        piped = layout.schedule == "1f1b" and layout.zero == (1 if layout.dp > 1 else 0)
        return layout.world_size > 1 and layout.tp == 1 and (layout.pp == 1 or piped)
    return engine == "torch" or layout.axes == ("dp",)
