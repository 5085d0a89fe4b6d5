"""What runs the optimizer step: torch itself, DeepSpeed or Accelerate.

All of them train the same weights on the same batches with the same optimizer, so that they can be compared and
compared with the same reference. Nothing is imported from an engine before it is chosen.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.axes.context import BuildContext, Planned
from paralab.engines import accelerate_settings, deepspeed_config, realised
from paralab.errors import ConfigError, LayoutError
from paralab.layout import Layout
from paralab.options.choices import EngineChoice, EngineName, Precision
from paralab.processes.meeting import Launcher

if TYPE_CHECKING:
    from paralab.engines.engine import Engine

ABLE: Mapping[EngineName, str] = {
    "torch": "every strategy",
    "deepspeed": "single, ddp, zero1, zero2, zero3, and 1f1b pipelines (with zero1 over several data ranks)",
    "accelerate": (
        "single, ddp, zero1 (by its DeepSpeed plugin, as zero2 and zero3 with --ds-config), zero2 and zero3 (FSDP2)"
    ),
}
_PRECISIONS: Mapping[EngineName, tuple[Precision, ...]] = {
    "torch": ("fp32", "bf16", "fp16", "fp64"),
    "deepspeed": deepspeed_config.PRECISIONS,
    "accelerate": accelerate_settings.PRECISIONS,
}


def choose(
    engine: EngineChoice,
    *,
    launcher: Launcher,
    layout: Layout,
    precision: Precision,
    ds_config: str | Path | None = None,
) -> EngineName:
    """Return the engine to use: the requested one, or for `auto` the launcher's own where it is able, else torch.

    A DeepSpeed file under a launcher without an engine of its own is as good as asking for DeepSpeed.
    Raises: LayoutError or ConfigError when the requested engine cannot run the layout.
    """
    if engine == "auto" and ds_config is not None and launcher != "accelerate":
        engine = "deepspeed"
    if engine == "auto":
        own: EngineName = launcher if launcher == "deepspeed" or launcher == "accelerate" else "torch"
        return own if _runs(own, layout) and precision in _PRECISIONS[own] else "torch"
    if not _runs(engine, layout):
        raise LayoutError(
            f"--engine {engine} cannot run layout {layout}: it runs {ABLE[engine]}; use one of these, or --engine torch"
        )
    if precision not in _PRECISIONS[engine]:
        able = " or ".join(_PRECISIONS[engine])
        raise ConfigError(f"--engine {engine} does not run --precision {precision}: use {able}, or --engine torch")
    return engine


def deepspeed_file(engine: EngineChoice, ds_config: str | None, env: Mapping[str, str] = os.environ) -> str | None:
    """Return the DeepSpeed file of a run: that of --ds-config, or under Accelerate the one its own file names.

    Raises: ConfigError where both are there and differ.
    """
    said = env.get(accelerate_settings.CONFIG_FILE) if engine == "accelerate" else None
    if said and ds_config and not _same_file(said, ds_config):
        raise ConfigError(
            f"--ds-config {ds_config}, and accelerate launch says deepspeed_config_file {said}: leave one of them out"
        )
    return ds_config or said


def check(work: Planned, *, requested: EngineChoice, launcher: Launcher, env: Mapping[str, str] = os.environ) -> None:
    """Refuse a configuration file that says something else than a run, before any of its processes is started.

    requested: the requested engine, `auto` included. env: what Accelerate's launcher set.
    Raises: ConfigError.
    """
    engine, ds_config = work.run.engine, work.run.ds_config
    if engine == "torch":
        if ds_config is not None:
            raise ConfigError(f"--ds-config {ds_config} with --engine torch: leave it out, or use --engine deepspeed")
        if launcher == "accelerate" and requested == "auto":
            accelerate_settings.check_unused(env, work)
    elif engine == "deepspeed" or accelerate_settings.kind_of(env, work, ds_config) == "deepspeed":
        deepspeed_config.of_run(work, ds_config)


def build(context: BuildContext, engine: EngineChoice, *, ds_config: str | Path | None = None) -> "Engine":
    """Build an engine on this rank, whose process group has been joined, and read back what it has.

    ds_config: DeepSpeed's JSON file, for `deepspeed` and for the plugin of `accelerate`.
    Raises: ConfigError when a configuration file and the run disagree, or the engine has something else than the run
    requested; WorldError when an engine sees other processes.
    """
    built = _built(context, engine, ds_config)
    realised.check_blocks(engine, built.parts, context.run)
    return built


def _built(context: BuildContext, engine: EngineChoice, ds_config: str | Path | None) -> "Engine":
    if engine == "deepspeed":
        from paralab.engines.deepspeed import build_deepspeed

        return build_deepspeed(context, ds_config)
    if engine == "accelerate":
        from paralab.engines.accelerate import build_accelerate

        return build_accelerate(context, ds_config)
    from paralab.engines import native

    return native.build(context)


def offloaded(ds_config: str | Path | None, layout: Layout) -> str:
    """Return what a layout or a DeepSpeed file keeps in the memory of the host, or `none`. Raises: ConfigError."""
    if layout.offload_parameters:
        return "optimizer+parameters"
    if layout.offload_optimizer:
        return "optimizer"
    if ds_config is None:
        return "none"
    return deepspeed_config.offloaded(deepspeed_config.read(ds_config))


def _same_file(a: str, b: str) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)


def _runs(engine: EngineName, layout: Layout) -> bool:
    # ZeRO within groups of data ranks, ranks that train apart, and what a layout keeps in the memory of the host
    if layout.shard or layout.local or layout.offload_optimizer or layout.offload_parameters:
        return engine == "torch"
    if engine == "deepspeed":
        piped = layout.schedule == "1f1b" and layout.zero == (1 if layout.dp > 1 else 0)
        return layout.axes in ((), ("dp",)) or (piped and set(layout.axes) <= {"pp", "dp"})
    return engine == "torch" or layout.axes in ((), ("dp",))
