"""Models: GPT-2, ResNet and diffusion, each one file that knows architecture only."""

from models import diffusion, gpt2, resnet
from models.spec import ModelSpec

SPECS: dict[str, ModelSpec] = {m.SPEC.name: m.SPEC for m in (gpt2, resnet, diffusion)}
