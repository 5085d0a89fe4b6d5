"""Weights from and for elsewhere: Hugging Face, safetensors, DeepSpeed."""
