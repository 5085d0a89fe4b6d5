"""Checkpoints and weights of other programs, told by the names of their files: nothing in them is read."""

from pathlib import Path

# what a path holds -> how the files are named, in the folder itself or in that of a step
_KINDS = {
    "a checkpoint of DeepSpeed": ("*mp_rank_*_model_states.pt", "global_step*/*_model_states.pt"),
    "a checkpoint of torch.distributed.checkpoint (as FSDP saves)": ("*.distcp",),
    "a checkpoint of Megatron": ("latest_checkpointed_iteration.txt", "mp_rank_*/*.pt"),
    "a checkpoint of Lightning": ("*.ckpt", "checkpoints/*.ckpt"),
    "a checkpoint of the Trainer of transformers": ("trainer_state.json", "checkpoint-*/trainer_state.json"),
    "a folder of transformers": ("config.json", "pytorch_model*.bin"),
    "a file of safetensors": ("*.safetensors",),
    "a file of torch.save": ("*.pt", "*.pth", "*.bin"),
}


def written_by_another(path: Path) -> str:
    """Return what a folder or a file is, where another program wrote it; empty where nothing tells."""
    for kind, patterns in _KINDS.items():
        for pattern in patterns:
            if path.is_dir() and next(path.glob(pattern), None) is not None:
                return kind.replace("a file of", "a folder of files of")
            if path.is_file() and path.match(pattern):
                return kind
    return ""
