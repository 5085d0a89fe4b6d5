"""What each key of a DeepSpeed file means here: used, ignored, must agree with the run, or refused.

The names are those of DeepSpeed 0.19 (`deepspeed/runtime/config.py`, `deepspeed/runtime/zero/config.py`) and of the
examples that its users copy. The tables are the only list: reading a file and docs/launchers.md both follow them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Handed:
    """Handed to DeepSpeed: it changes speed or memory, never the step. "auto" is DeepSpeed's default.

    keys: the rules of a section. only: the values it may have, where not every value is supported.
    """

    keys: Mapping[str, "Rule"] = field(default_factory=dict)
    only: tuple[Any, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """Accepted and not handed over: it only prints or writes files, or nothing here listens to it.

    note: what to know where it is switched on; said once in a run. keys: the names a section may hold.
    """

    note: str = ""
    keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Decided:
    """Decided by the run: a file may leave it out, say "auto", or say the same.

    keys: the names a section may hold. only: the values it may have, where there are few.
    """

    keys: frozenset[str] = frozenset()
    only: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Off:
    """Refused unless it is switched off, since it would change the step, or what is recorded would not be so.

    instead: what to do. unless: values as good as off. keys: the names a section may hold.
    """

    instead: str
    unless: tuple[Any, ...] = ()
    keys: frozenset[str] = frozenset()


Rule = Handed | LeftOut | Decided | Off


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _all(text: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(text.split(), rule)


_RECORDED = "nothing is printed or written: the row and the log of the run hold the times and the memory"
_MONITORS = "nothing is written there: the log of the run holds every step"
_DEVICE = Handed(only=("none", "cpu"))
_WHILE_TRAINING = 'it changes the step while training: remove it, or set "enabled" to false'

ZERO_KEYS: dict[str, Rule] = {
    "stage": Decided(only=(0, 1, 2, 3)),
    **_all(
        """contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce allgather_partitions
        allgather_bucket_size overlap_comm load_from_fp32_weights elastic_checkpoint sub_group_size
        cpu_offload_use_pin_memory prefetch_bucket_size stage3_prefetch_bucket_size param_persistence_threshold
        stage3_param_persistence_threshold model_persistence_threshold stage3_model_persistence_threshold
        max_live_parameters stage3_max_live_parameters max_reuse_distance stage3_max_reuse_distance
        gather_16bit_weights_on_model_save stage3_gather_16bit_weights_on_model_save
        stage3_gather_fp16_weights_on_model_save module_granularity_threshold stage3_module_granularity_threshold
        use_all_reduce_for_fetch_params stage3_use_all_reduce_for_fetch_params allgather_sequential
        stage3_allgather_sequential ignore_unused_parameters legacy_stage1 round_robin_gradients parameter_alignment
        memory_efficient_linear pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings
        enable_sanity_checks save_muon_momentum_buffer_in_memory""",
        Handed(),
    ),
    "compute_grad_norm": Off("the norm is recorded: remove it, or set it to true", unless=(True,)),
    "leaf_module": LeftOut("these models have no experts", _names("classes names name_suffixes")),
    "cpu_offload": Off('use "offload_optimizer": {"device": "cpu"} for it'),
    "cpu_offload_param": Off('use "offload_param": {"device": "cpu"} for it'),
    "offload_param": Handed(
        {"device": _DEVICE, **_all("nvme_path buffer_count buffer_size max_in_cpu pin_memory", Handed())}
    ),
    "offload_optimizer": Handed(
        {
            "device": _DEVICE,
            **_all(
                """nvme_path buffer_count pin_memory pipeline_read pipeline_write fast_init ratio
                cpuadam_cores_perc""",
                Handed(),
            ),
            "super_offload": Off("it needs an optimizer of DeepSpeed's: remove it, or set it to false"),
        }
    ),
    "zenflow": Off("it updates some weights later than others: remove it"),
    "zero_hpz_partition_size": Off(
        "a second copy of the weights in each node would not be recorded: remove it, or set it to 1", unless=(0, 1)
    ),
    "mics_shard_size": Off(
        "weights would be copied between groups of ranks, which would not be recorded: remove it", unless=(-1,)
    ),
    "mics_hierarchical_params_gather": Off("it belongs to MiCS: remove it, or set it to false"),
    **_all(
        """zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients zeropp_loco_param""",
        Off("it rounds what ranks exchange: remove it, or set it to false"),
    ),
}

KEYS: dict[str, Rule] = {
    **_all("train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping", Decided()),
    "zero_optimization": Handed(ZERO_KEYS),
    "fp16": Decided(
        _names(
            """enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis
            min_loss_scale fp16_master_weights_and_grads opt_level"""
        )
    ),
    **_all(
        "bf16 bfloat16",
        Decided(
            _names(
                """enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads
                bf16_optimizer_states auto_cast loss_scale initial_scale_power loss_scale_window hysteresis
                min_loss_scale"""  # those from loss_scale on: copied from fp16, and ignored by DeepSpeed
            )
        ),
    ),
    "torch_autocast": Decided(_names("enabled dtype")),
    "optimizer": Decided(_names("type params legacy_fusion")),
    "scheduler": Decided(_names("type params")),
    **_all(
        """steps_per_print disable_python_gc dataloader_drop_last log_level zero_allow_untested_optimizer
        seq_parallel_communication_data_type use_node_local_storage""",
        LeftOut(),
    ),
    "aio": LeftOut(
        keys=_names("block_size queue_depth thread_count intra_op_parallelism single_submit overlap_events use_gds")
    ),
    "checkpoint": LeftOut(keys=_names("tag_validation load_universal use_node_local_storage parallel_write writer")),
    "nebula": LeftOut(
        "checkpoints are written by paralab",
        _names(
            """enabled persistent_storage_path persistent_time_interval num_of_version_in_retention enable_nebula_load
            load_path"""
        ),
    ),
    "timers": LeftOut(keys=_names("throughput")),
    **_all("wall_clock_breakdown memory_breakdown dump_state", LeftOut(_RECORDED)),
    "flops_profiler": LeftOut(
        _RECORDED,
        _names("enabled recompute_fwd_factor profile_step module_depth top_modules detailed output_file"),
    ),
    "comms_logger": LeftOut(_RECORDED, _names("enabled prof_all prof_ops verbose debug")),
    **_all("tensorboard csv_monitor", LeftOut(_MONITORS, _names("enabled output_path job_name"))),
    "wandb": LeftOut(_MONITORS, _names("enabled group team project")),
    "comet": LeftOut(
        _MONITORS,
        _names("""enabled samples_log_interval project workspace api_key experiment_name experiment_key online mode"""),
    ),
    "activation_checkpointing": LeftOut(
        "these models do not use DeepSpeed's checkpointing: type --checkpointing full to recompute activations",
        _names(
            """partition_activations cpu_checkpointing contiguous_memory_optimization number_checkpoints
            synchronize_checkpoint_boundary profile"""
        ),
    ),
    "communication_data_type": Off('gradients are summed in fp32: remove it, or set it to "fp32"', unless=("fp32",)),
    "fp32_allreduce": Off("gradients are summed in fp32 in any case: remove it", unless=(True,)),
    "data_types": Off(
        'all of them are fp32 here: remove it, or set them to "fp32"',
        unless=("fp32",),
        keys=_names("grad_accum_dtype param_dtype buffer_dtype keep_in_fp32_modules"),
    ),
    "zero_force_ds_cpu_optimizer": Off(
        "the optimizer is torch's, also where its states are offloaded: remove it, or set it to false"
    ),
    "prescale_gradients": Off("it rounds gradients otherwise: remove it, or set it to false"),
    "gradient_predivide_factor": Off("it rounds gradients otherwise: remove it, or set it to 1.0", unless=(1,)),
    "gradient_allreduce_op": Off('gradients are averaged: remove it, or set it to "mean"', unless=("mean",)),
    "managed_gradient_accumulation": Off("remove it, or set it to true", unless=(True,)),
    "disable_allgather": Off("ranks need the weights that others update: remove it, or set it to false"),
    "sparse_gradients": Off("gradients are dense here: remove it, or set it to false"),
    "sparse_attention": Off("attention is dense here: remove it"),
    "graph_harvesting": Off("type --compile reduce-overhead for CUDA graphs: remove it, or set it to false"),
    "compile": Off("type --compile default instead", keys=_names("enabled backend kwargs deepcompile")),
    "amp": Off("type --precision bf16 instead", keys=_names("enabled opt_level loss_scale")),
    "tensor_parallel": Off(
        "type --strategy tensor --engine torch instead",
        unless=(0, 1),
        keys=_names("autotp_size tp_overlap_comm tp"),
    ),
    "sequence_parallel_size": Off("use a --layout with /sp instead, and --engine torch", unless=(1,)),
    "use_data_before_expert_parallelism": Off("these models have no experts: remove it, or set it to false"),
    "expert_parallel": Off("these models have no experts: remove it", keys=_names("enabled expert_parallel_size")),
    "pipeline": Off("type --strategy pipeline instead, and remove it"),
    "elasticity": Off(
        'remove it, or set "enabled" to false: `paralab node` restarts with fewer machines',
        keys=_names(
            """enabled max_train_batch_size micro_batch_sizes min_gpus max_gpus min_time version
            ignore_non_elastic_batch_info prefer_larger_batch prefer_larger_batch_size model_parallel_size
            num_gpus_per_node"""
        ),
    ),
    "curriculum_learning": Off(
        _WHILE_TRAINING,
        keys=_names("enabled curriculum_type min_difficulty max_difficulty schedule_type schedule_config"),
    ),
    "data_efficiency": Off(_WHILE_TRAINING, keys=_names("enabled seed data_sampling data_routing")),
    "progressive_layer_drop": Off(_WHILE_TRAINING, keys=_names("enabled theta gamma")),
    "eigenvalue": Off(
        _WHILE_TRAINING,
        keys=_names("enabled verbose max_iter tol stability gas_boundary_resolution layer_name layer_num"),
    ),
    "compression_training": Off(
        _WHILE_TRAINING,
        keys=_names(
            """layer_reduction weight_quantization activation_quantization sparse_pruning row_pruning head_pruning
            channel_pruning"""
        ),
    ),
    "quantize_training": Off(
        _WHILE_TRAINING,
        keys=_names(
            """enabled quantize_verbose quantizer_kernel quantize_type quantize_bits quantize_schedule quantize_groups
            fp16_mixed_quantize quantize_algo"""
        ),
    ),
    "weight_quantization": Off("it rounds the weights: remove it"),
    "autotuning": Off(
        'use `paralab bench` for it: remove it, or set "enabled" to false',
        keys=_names(
            """enabled fast results_dir exps_dir overwrite start_profile_step end_profile_step start_step end_step
            metric metric_path tuner_type tuner_early_stopping tuner_num_trials arg_mappings max_train_batch_size
            min_train_batch_size max_train_micro_batch_size_per_gpu min_train_micro_batch_size_per_gpu
            num_tuning_micro_batch_sizes mp_size model_info model_info_path"""
        ),
    ),
    "hybrid_engine": Off(
        'remove it, or set "enabled" to false: it generates text while training',
        keys=_names(
            """enabled max_out_tokens inference_tp_size release_inference_cache pin_parameters tp_gather_partition_size
            enable_cuda_graph"""
        ),
    ),
}

OPTIMIZER_PARAMS = _names(
    "lr betas eps weight_decay momentum adam_w_mode torch_adam bias_correction amsgrad fused set_grad_none"
)
SCHEDULER_PARAMS = _names(
    """warmup_min_lr warmup_max_lr warmup_num_steps warmup_type total_num_steps warmup_min_ratio cos_min_ratio
    last_batch_iteration"""
)
