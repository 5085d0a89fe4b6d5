"""What the layers of a ResNet hold and see: the filters of the first one, and feature maps of an image."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paralab import checkpoint
from paralab.console.phases import Phases
from paralab.errors import ConfigError, DataError
from paralab.inference.encoders import samples_of, untrained
from paralab.inference.restore import restore
from paralab.models.resnet import ResNet, ResNetConfig
from paralab.options.files import load

before_training = partial(untrained, most=1024, at_once=32)  # training images that its norms have seen


@dataclass(frozen=True)
class Looked:
    """A ResNet at one moment. label: which. filters: (filters, channels, height, width), of the first layer.

    maps: what an image has become after the first layer and after each stage, by name: (channels, height, width).
    """

    label: str
    filters: Tensor
    maps: Mapping[str, Tensor]


def across_training(run: Path, *, most: int, number: int, phases: Phases) -> tuple[list[Looked], Tensor]:
    """Return a network before training and at its checkpoints, and a held-out image (channels, size, size).

    run: the folder of a training. most: checkpoints to look at, evenly chosen where there are more. number: of the
    image, from 0. phases: told of each checkpoint. A run that began from other weights has no moment before training.
    Raises: ConfigError for another model or where there is no such image; DataError where there is no checkpoint, or
    one cannot be read.
    """
    folders = checkpoint.checkpoints(run)[::-1]
    if not folders:
        raise DataError(f"{run} has no checkpoint: give the folder of a training with --save-at-epochs 1,2,4, say")
    chosen = sorted({round(n * (len(folders) - 1) / max(most - 1, 1)) for n in range(most)})
    found: list[Looked] = []
    phases.begin("checkpoints", total=len(chosen))
    for trained in (restore(folders[n]) for n in chosen):
        if not isinstance(trained.model, ResNet):
            raise ConfigError(f"{run} trains {trained.work.spec.name}: give a run of --model resnet or vicreg")
        held_out = samples_of(trained, "validation")
        if number >= held_out.n_samples:
            raise ConfigError(
                f"--image {number} of {held_out.n_samples:,} held-out images: use 0 to {held_out.n_samples - 1}"
            )
        image = held_out.load(np.array([number]))[0].to(next(trained.model.parameters()))
        config = trained.work.model_config
        assert isinstance(config, ResNetConfig)
        if not found and load(run / "config.toml").get("init_from") is None:
            found.append(look(before_training(trained), config, image, label="untrained"))
        found.append(look(trained.model, config, image, label=f"step {trained.step}"))
        phases.advance()
    return found, image[0].cpu().float()


@torch.no_grad()
def look(model: ResNet, config: ResNetConfig, image: Tensor, *, label: str) -> Looked:
    """Return filters and feature maps of a model in eval mode for an image (1, channels, size, size)."""
    x = model.stem(image)
    maps = {"the first layer": x[0]}
    last_of = {last: stage for stage, last in enumerate(accumulate(config.depths), start=1)}
    for number, block in enumerate(model.blocks.values(), start=1):
        x = block(x)
        if number in last_of:
            maps[f"stage {last_of[number]}"] = x[0]
    kept = {name: found.cpu().float() for name, found in maps.items()}
    return Looked(label, model.stem.conv.weight.detach().cpu().float(), kept)
