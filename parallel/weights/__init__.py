"""Importing and exporting weights: Hugging Face, safetensors, nanoGPT, DeepSpeed."""
