"""Compare what `accelerate launch` sets in environment variables with the options of the run.

Accelerate's file and flags reach a process as variables, most of them also where nobody set them. Each has one of
three meanings here: it may say anything (`TAKEN`), it must say what the run says, or it must be off. One that is not
known is refused as well, unless it is off. The engine then gives Accelerate its settings itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from paralab.axes.blocks import blocks_of
from paralab.axes.context import Planned
from paralab.errors import ConfigError
from paralab.options.choices import Precision

SWITCHES = {
    "fsdp": "ACCELERATE_USE_FSDP",
    "deepspeed": "ACCELERATE_USE_DEEPSPEED",
    "megatron_lm": "ACCELERATE_USE_MEGATRON_LM",
}
CONFIG_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
STAGES = {"ddp": (0,), "fsdp": (2, 3), "deepspeed": (1, 2, 3)}
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp64")
PREFIXES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "MEGATRON_LM_")

_PARALLELISM = "ACCELERATE_USE_PARALLELISM_CONFIG"
_DYNAMO = "ACCELERATE_DYNAMO_BACKEND"
_KINDS = ("ddp", "deepspeed", "fsdp", "fsdp")  # of each stage, where nothing says otherwise
_OFF = ("", "no", "none", "false", "0", "auto")

# May say anything: they start processes, print, load or save, or belong to a setting that is checked.
TAKEN = frozenset(
    """
    ACCELERATE_USE_CPU ACCELERATE_USE_FSDP ACCELERATE_USE_DEEPSPEED ACCELERATE_USE_PARALLELISM_CONFIG
    ACCELERATE_DEBUG_MODE ACCELERATE_CPU_AFFINITY ACCELERATE_LOG_LEVEL ACCELERATE_ENABLE_RICH ACCELERATE_DISABLE_RICH
    ACCELERATE_TORCH_DEVICE ACCELERATE_CONFIG_DS_FIELDS ACCELERATE_BYPASS_DEVICE_MAP ACCELERATE_ALLOW_CP_STANDALONE
    ACCELERATE_DEEPSPEED_CONFIG_FILE ACCELERATE_DEEPSPEED_ZERO3_INIT ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL
    ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_NVME_PATH
    ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION
    FSDP_MIN_NUM_PARAMS FSDP_BACKWARD_PREFETCH FSDP_FORWARD_PREFETCH FSDP_STATE_DICT_TYPE FSDP_USE_ORIG_PARAMS
    FSDP_CPU_RAM_EFFICIENT_LOADING FSDP_SYNC_MODULE_STATES
    PARALLELISM_CONFIG_CP_BACKEND PARALLELISM_CONFIG_CP_COMM_STRATEGY PARALLELISM_CONFIG_SP_BACKEND
    PARALLELISM_CONFIG_SP_SEQ_LENGTH PARALLELISM_CONFIG_SP_SEQ_LENGTH_IS_VARIABLE
    PARALLELISM_CONFIG_SP_ATTN_IMPLEMENTATION
    """.split()
)
_YAML_NAMES = {
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "fsdp_transformer_layer_cls_to_wrap",
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": "deepspeed_moe_layer_cls_names",
}


@dataclass(frozen=True)
class Agreed:
    """Values that a variable may have in this run, in any case; none: off. The first is what to write.

    typed: the option to type instead, with {got} for what the variable says, which is one of `able`, if there are any.
    """

    values: tuple[str, ...]
    typed: str = ""
    able: tuple[str, ...] = ()


def kind_of(env: Mapping[str, str], work: Planned, config_path: object = None) -> str:
    """Return what Accelerate is to run: ddp, fsdp or deepspeed.

    env: what `accelerate launch` made of its YAML file and flags. config_path: DeepSpeed's file, if there is one.
    Raises: ConfigError when that is not what the layout and the run say.
    """
    zero = work.layout.zero
    asked = [kind for kind, switch in SWITCHES.items() if _is_on(env.get(switch))]
    if "megatron_lm" in asked:
        raise ConfigError(
            "accelerate launch says distributed_type MEGATRON_LM, which is not supported: write MULTI_GPU, and type "
            "--engine torch with --strategy tensor, pipeline, 2d or 3d"
        )
    if asked == ["fsdp"] and config_path:
        raise ConfigError(
            f"accelerate launch says distributed_type FSDP, and {config_path} is DeepSpeed's: leave out --ds-config, "
            "or use a file of Accelerate's with distributed_type DEEPSPEED"
        )
    kind = "deepspeed" if config_path else asked[0] if asked else _KINDS[zero]
    if zero not in STAGES[kind]:
        able = " or ".join(f"zero{stage}" if stage else "ddp" for stage in STAGES[kind])
        raise ConfigError(
            f"Accelerate runs {kind} here, which is --strategy {able}, and the layout is {work.layout}: use one of "
            "these, another file of ds_configs/accelerate, or --ds-config with a file of ds_configs"
        )
    _check(env, agreed(kind, work, config_path))
    return kind


def check_unused(env: Mapping[str, str], work: Planned) -> None:
    """Raise ConfigError where Accelerate's file says how to train, and `--engine auto` takes torch for this run.

    Then only those settings are good that say what the run says.
    """
    for kind, switch in SWITCHES.items():
        if _is_on(env.get(switch)):
            raise ConfigError(
                f"accelerate launch says distributed_type {kind.upper()}, and the engine of this run is torch, which "
                f"alone runs layout {work.layout} in {work.run.precision}: type --engine torch to train without "
                "Accelerate's settings, or use ds_configs/accelerate/ddp.yaml"
            )
    _check(env, _agreed_by_all(work))


def agreed(kind: str, work: Planned, config_path: object = None) -> dict[str, Agreed]:
    """Return what each variable may say that concerns the step. One with no value must be off."""
    run, layout = work.run, work.layout
    found = _agreed_by_all(work)
    if kind == "deepspeed":
        clip = f"{run.clip_norm:g}" if run.clip_norm else "none"
        clipping = (clip, *_OFF) if run.clip_norm is None else (clip, str(run.clip_norm), "none", "auto")
        found |= {
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": Agreed((str(layout.zero),), "--strategy zero{got}"),
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": Agreed(
                (str(work.division.chunks), "auto", "none"), "--accumulation {got}"
            ),
            "ACCELERATE_GRADIENT_CLIPPING": Agreed(clipping, "--clip-norm {got}"),
            "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": Agreed(()),
        }
        offload = Agreed(("none",), "--ds-config ds_configs/zero3_offload.json")
        for what in () if config_path else ("OPTIMIZER", "PARAM"):
            found[f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE"] = offload
    if kind == "fsdp":
        blocks = {type(block).__name__ for block in blocks_of(work.spec.on_meta(work.model_config)).values()}
        whole = layout.zero == 3
        sharding = ("full_shard", "1") if whole else ("shard_grad_op", "2", "full_shard", "1")  # FSDP2 does not read it
        recomputed = ("true", "false") if run.checkpointing == "full" else ("false",)
        found |= {
            "FSDP_VERSION": Agreed(("2",)),
            "FSDP_RESHARD_AFTER_FORWARD": Agreed(
                ("true",) if whole else ("false",), f"--strategy {'zero2' if whole else 'zero3'}", ("true", "false")
            ),
            "FSDP_SHARDING_STRATEGY": Agreed(sharding),
            "FSDP_OFFLOAD_PARAMS": Agreed(("false",), "--ds-config ds_configs/zero3_offload.json without FSDP"),
            "FSDP_ACTIVATION_CHECKPOINTING": Agreed(recomputed, "--checkpointing full"),
            "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": Agreed(("false",)),
            "FSDP_AUTO_WRAP_POLICY": Agreed(("transformer_based_wrap",)),
            "FSDP_TRANSFORMER_CLS_TO_WRAP": Agreed((",".join(sorted(blocks)),)),
            "FSDP_IGNORED_MODULES": Agreed(()),
        }
    return found


def _agreed_by_all(work: Planned) -> dict[str, Agreed]:
    run = work.run
    precisions = (run.precision, "no") if run.precision in ("bf16", "fp16") else ("no", run.precision)
    found = {
        "ACCELERATE_MIXED_PRECISION": Agreed(precisions, "--precision {got}"),
        _DYNAMO: Agreed(("no",) if run.compile == "none" else ("inductor", "no"), "--compile default", ("inductor",)),
        "ACCELERATE_DYNAMO_MODE": Agreed((run.compile,), "--compile {got}"),
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": Agreed(()),
        "ACCELERATE_DYNAMO_USE_DYNAMIC": Agreed(()),
    }
    world = str(work.layout.world_size)
    sizes = {"DP_REPLICATE": "1", "DP_SHARD": world, "TP": "1", "CP": "1", "SP": "1"}
    if work.layout.zero < 2:
        sizes |= {"DP_REPLICATE": world, "DP_SHARD": "1"}
    instead = "--engine torch with the --layout that you mean"
    found |= {f"PARALLELISM_CONFIG_{axis}_SIZE": Agreed((size,), instead) for axis, size in sizes.items()}
    return found


def _check(env: Mapping[str, str], known: Mapping[str, Agreed]) -> None:
    """Raise ConfigError for the first variable that says something else than the run, or is not known."""
    for name in (*known, *sorted(name for name in env if name.startswith(PREFIXES) and name not in known)):
        if name not in env or name in TAKEN or not _applies(name, env):
            continue
        got = env[name].lower()
        if name not in known:
            if got not in _OFF:
                raise ConfigError(
                    f"accelerate launch says {_yaml_name(name)} {env[name]}, which is not known here: remove it from "
                    "Accelerate's file, or type --engine torch to train without Accelerate's settings"
                )
            continue
        wanted = known[name]
        if got not in {value.lower() for value in wanted.values or _OFF}:
            raise ConfigError(_difference(name, env[name], wanted))


def _difference(name: str, got: str, wanted: Agreed) -> str:
    key, need = _yaml_name(name), (wanted.values or ("off",))[0]
    said = f"accelerate launch says {key} {got}, this run needs {need}"
    if name == "ACCELERATE_MIXED_PRECISION" and got not in PRECISIONS:
        able = " or ".join(PRECISIONS[:2])
        torch = f"; without Accelerate's engine, type --engine torch --precision {got}" if got == "fp16" else ""
        return (
            f"{said}: Accelerate's engine runs {able}, write {key}: bf16 and type --precision bf16, or write {key}: "
            f"no{torch}"
        )
    write = f"write {key}: {need}" if wanted.values else f"remove {key}"
    helps = not wanted.able or got.lower() in wanted.able
    typed = f"type {wanted.typed.format(got=got)}, or " if wanted.typed and helps else ""
    return f"{said}: {typed}{write} in Accelerate's file"


def _applies(name: str, env: Mapping[str, str]) -> bool:
    """Return whether Accelerate would read a variable: many are set for kinds that are not in use."""
    if name.startswith("FSDP_"):
        return _is_on(env.get(SWITCHES["fsdp"]))
    if name.startswith("MEGATRON_LM_"):
        return _is_on(env.get(SWITCHES["megatron_lm"]))
    if name.startswith("PARALLELISM_CONFIG_"):
        return _is_on(env.get(_PARALLELISM))
    if name.startswith("ACCELERATE_DYNAMO_") and name != _DYNAMO:
        return env.get(_DYNAMO, "no").lower() not in _OFF
    return True


def _yaml_name(name: str) -> str:
    short = name.removeprefix("ACCELERATE_DEEPSPEED_").removeprefix("ACCELERATE_")
    return _YAML_NAMES.get(name, short.lower())


def _is_on(value: str | None) -> bool:
    return (value or "").lower() in ("1", "true", "yes", "y", "on", "t")
