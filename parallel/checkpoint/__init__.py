"""Checkpoints that move between layouts: saved under one, loaded under any other, at any number of processes."""

from paralab.checkpoint.folder import Facts, best, check_format, checkpoints, is_checkpoint, latest, read_facts
from paralab.checkpoint.loading import load, resume
from paralab.checkpoint.same_work import check_same_work
from paralab.checkpoint.saving import Saver, save
from paralab.checkpoint.weights import export_safetensors, import_safetensors, read_weights

__all__ = [
    "Facts",
    "Saver",
    "best",
    "check_format",
    "check_same_work",
    "checkpoints",
    "export_safetensors",
    "import_safetensors",
    "is_checkpoint",
    "latest",
    "load",
    "read_facts",
    "read_weights",
    "resume",
    "save",
]
