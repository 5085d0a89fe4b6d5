"""Features of images by the frozen encoder of a trained model, and by one as it was before training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paralab.axes.initialise import FirstValues
from paralab.data.dataset import Samples
from paralab.errors import ConfigError, DataError
from paralab.inference.restore import Trained
from paralab.models.resnet import ResNet
from paralab.models.spec import at_least_fp32
from paralab.models.vicreg import VICReg

_AT_ONCE = 256  # images: bounds memory


@dataclass(frozen=True)
class Encoded:
    """Images as an encoder sees them. x: features (images, features) fp64; labels: (images,) int64. Both on the CPU."""

    x: Tensor
    labels: Tensor


def encoder_of(trained: Trained, *, labelled: bool) -> ResNet:
    """Return the model of a checkpoint: vicreg, or resnet, which is trained with labels.

    Raises: ConfigError for another model.
    """
    needed = "resnet" if labelled else "vicreg"
    if isinstance(trained.model, VICReg if not labelled else ResNet) and trained.work.spec.name == needed:
        assert isinstance(trained.model, ResNet)
        return trained.model
    option = "--supervised" if labelled else "--checkpoint"
    raise ConfigError(
        f"{option} {trained.path} is a {trained.work.spec.name} model: one of paralab train --model {needed} is needed"
    )


def samples_of(trained: Trained, split: str) -> Samples:
    """Return the images of a split that a model was trained on, as they are. Raises: DataError."""
    return trained.work.dataset(split).samples  # type: ignore[attr-defined]


def encode(
    model: ResNet, samples: Samples, *, most: int | None = None, on_images: Callable[[int], None] = lambda _: None
) -> Encoded:
    """Return what a model in eval mode makes of images, of at most so many of them: the first ones.

    on_images: called with the number of images after each batch. Raises: DataError for features that are not finite.
    """
    found, labels = [], []
    with torch.no_grad():
        for images, of in _batches(model, samples, most=most):
            found.append(at_least_fp32(model.features(images)).double().cpu())
            labels.append(of)
            on_images(len(of))
    x = torch.cat(found)
    if lost := int((~x.isfinite()).any(dim=1).sum()):
        raise DataError(
            f"the features of {lost:,} of {len(x):,} images are not finite, the training of this encoder diverged: "
            "use an earlier checkpoint"
        )
    return Encoded(x, torch.cat(labels))


def pixels_of(samples: Samples) -> Encoded:
    """Return the pixels of images in the place of features: (images, channels size size)."""
    images, labels = samples.load(np.arange(samples.n_samples))
    return Encoded(images.double().flatten(1), labels)


def untrained(
    trained: Trained,
    *,
    most: int | None = None,
    at_once: int = _AT_ONCE,
    on_images: Callable[[int], None] = lambda _: None,
) -> ResNet:
    """Return the encoder with the values that its training began with, in eval mode.

    Its norms take their statistics from the training images, or so many of them, in batches of `at_once`: those that
    they begin with are of no images, and weigh 0.9 to the power of the number of batches at the end. on_images: called
    with the number of images after each batch.
    """
    work = trained.work
    model = work.new_model().to_empty(device=trained.device)
    assert isinstance(model, ResNet)
    first = FirstValues(work.spec, work.model_config, work.run.seed)
    model.load_state_dict({name: first(name, tensor) for name, tensor in model.state_dict().items()})
    with torch.no_grad():
        for images, _ in _batches(model, samples_of(trained, "train"), most=most, at_once=at_once):
            model.features(images)
            on_images(len(images))
    return model.eval()


def _batches(
    model: ResNet, samples: Samples, *, most: int | None = None, at_once: int = _AT_ONCE
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (rows, channels, size, size) where the model is, in its dtype, and their labels (rows,) int64."""
    like = next(model.parameters())
    count = min(samples.n_samples, most or samples.n_samples)
    for start in range(0, count, at_once):
        images, labels = samples.load(np.arange(start, min(start + at_once, count)))
        yield images.to(like), labels
