"""What each schema changed in the columns of a row, from the first schema that was counted to that of today."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Change:
    """What one schema changed in the columns of the one before it."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)  # old name: new name


# The first six sets of columns were published without being counted: their rows say 1. From the sixth on every change
# of the columns is a line here, and a test holds the line against the columns.
UNCOUNTED, COUNTED_FROM = 1, 6
_WIRE = [f"comm_{axis}_{kind}" for axis in ("dp", "tp", "pp", "world") for kind in ("", "predicted_")]
COUNTS = ("calls", "payload_bytes", "ring_bytes", "sent_bytes", "predicted_ring_bytes", "predicted_sent_bytes")
_PARTS_OF_DP = tuple(f"comm_{axis}_{count}" for axis in ("dp_shard", "dp_replicate") for count in COUNTS)
_OF_CP = tuple(f"comm_{axis}_{count}" for axis in ("cp", "dp_cp") for count in COUNTS)
_OF_EP = tuple(f"comm_{axis}_{count}" for axis in ("ep", "edp") for count in COUNTS)
CHANGES: dict[int, Change] = {
    # what was called wire bytes were those of a ring, whatever the backend sent
    7: Change(
        added=tuple(f"{name}sent_bytes" for name in _WIRE),
        renamed={f"{name}wire_bytes": f"{name}ring_bytes" for name in _WIRE},
    ),
    8: Change(added=("memory_buffers_bytes",)),  # until then in memory_other_bytes or memory_activations_bytes
    9: Change(added=("slowest_rank",)),
    10: Change(added=("parity_scope", "parity_result")),  # until then parameter_difference_max was in learning rates
    11: Change(added=("n_classes",)),
    12: Change(added=("dp_shard", *_PARTS_OF_DP)),
    13: Change(added=("axes_json",)),
    14: Change(added=("model_file", "model_sha256")),
    15: Change(added=("local_steps", "grad_compression", "outer_optimizer")),
    16: Change(added=("graph_breaks", "recompiles")),
    17: Change(added=("cp", "cp_style", *_OF_CP)),
    18: Change(),  # status may be "dry run"
    19: Change(added=("ep", *_OF_EP, "expert_imbalance", "dropped_share")),
    20: Change(added=("tokenizer", "vocabulary")),
    21: Change(added=("tokens_per_step", "model_flop_per_step", "energy_per_token_j")),
    22: Change(added=("slowest_step", "slowest_behind_s", "slowest_cause", "step_parts_json")),
    23: Change(added=("until_decided_percent",)),
    24: Change(added=("until_loss", "steps_to_loss", "samples_to_loss", "time_to_loss_s")),
    25: Change(added=("epochs_requested", "epochs")),
    26: Change(added=("optimizer_8bit_share",)),
    27: Change(added=("residual",)),
    28: Change(added=("outer_fragments",)),
    29: Change(added=("outer_overlap",)),
}
RENAMED = {old: new for number in sorted(CHANGES) for old, new in CHANGES[number].renamed.items()}
SCHEMA = max(CHANGES, default=COUNTED_FROM)
