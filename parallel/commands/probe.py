"""Measure what the frozen encoder of a vicreg model knows of the classes of images, which it was trained without.

    paralab probe --checkpoint runs/vicreg

A linear classifier and a vote of nearest neighbours learn from the features of training images and their labels; what
is printed is their accuracy on held-out images, with 95% intervals. Beside it stands the same encoder as it was before
training and, where one is given, an encoder that was trained with labels.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.errors import ConfigError, DataError
from paralab.options.arguments import Parser, add_checkpoint, whole

if TYPE_CHECKING:
    from paralab.inference.encoders import Encoded
    from paralab.inference.restore import Trained
    from paralab.models.resnet import ResNet

_WIDTHS = (25, 27, 27)


def main(argv: list[str]) -> int:
    """Print a line for each encoder; on stderr, which checkpoint was read. Returns: 0.

    Raises: ConfigError for a checkpoint of another model, or other data; DataError for one that cannot be read.
    """
    options = _parse(argv)
    from paralab.inference.encoders import encode, samples_of
    from paralab.inference.restore import restore

    trained = restore(options.checkpoint)
    supervised = restore(options.supervised) if options.supervised else None
    phases = Phases(Moment.now(), transient=True)
    with phases:
        encoders = _encoders(trained, supervised, phases)
        first = next(encoders)  # refuses another model before its images are counted
        training, held_out = samples_of(trained, "train").n_samples, samples_of(trained, "validation").n_samples
        labels = _labels(options, training)
        every = [first, *encoders]
    print(f"{trained.work.spec.name} {trained.work.size} from {trained.path}", file=sys.stderr)
    print(f"{labels:,} labelled images; right of {held_out:,} held-out ones, with 95% intervals:")
    print(_row("encoder", "linear probe", f"{options.k} nearest neighbours"))
    with phases:
        for name, of, model in every:
            phases.begin(f"{name}: features of images", total=labels + held_out)
            near = encode(model, samples_of(of, "train"), most=labels, on_images=phases.advance)
            far = encode(model, samples_of(of, "validation"), on_images=phases.advance)
            phases.begin(f"{name}: fitting a linear probe, looking for neighbours")
            cells = [*_accuracies(near, far, k=options.k, phases=phases)]
            phases.end()
            print(_row(name, *cells), flush=True)
    return 0


def _labels(options: argparse.Namespace, training: int) -> int:
    """Return how many labelled images are learned from. Raises: ConfigError for more than there are, or too few."""
    if training < 2:
        raise ConfigError(f"a probe learns from 2 images or more, and {training} is for training: give other data")
    labels: int = options.labels or training
    if labels > training:
        raise ConfigError(f"--labels {labels} with {training} training images: use {training} or fewer")
    if labels < options.k:
        raise ConfigError(f"{labels} labelled images and {options.k} neighbours: use a smaller --k, or more --labels")
    return labels


def _encoders(
    trained: "Trained", supervised: "Trained | None", phases: Phases
) -> "Iterator[tuple[str, Trained, ResNet]]":
    """Yield what to call an encoder, what its images are those of, and the encoder."""
    from paralab.inference.encoders import encoder_of, samples_of, untrained

    yield f"trained, step {trained.step}", trained, encoder_of(trained, labelled=False)
    if supervised is not None:
        labelled = encoder_of(supervised, labelled=True)
        if supervised.work.data_sha256 != trained.work.data_sha256:
            raise ConfigError(
                f"--supervised {supervised.path} was trained on other images than {trained.path}: use one of the same "
                "--data"
            )
    phases.begin("before training: statistics of its norms", total=samples_of(trained, "train").n_samples)
    yield "before training", trained, untrained(trained, on_images=phases.advance)
    if supervised is not None:
        yield f"{supervised.work.spec.name} {supervised.work.size}, with labels", supervised, labelled


def _accuracies(near: "Encoded", far: "Encoded", *, k: int, phases: Phases) -> "Iterator[str]":
    """Yield the accuracy on `far` of what learned from `near`: the linear probe, the nearest neighbours."""
    from paralab.inference.probes import linear_probe, nearest_neighbours, wilson_interval

    n_classes = int(near.labels.max()) + 1
    if not len(far.labels):
        raise DataError("there are no held-out images: give data with a validation split")
    for classify in (
        linear_probe(near.x, near.labels, n_classes=n_classes, on_step=phases.advance),
        nearest_neighbours(near.x, near.labels, n_classes=n_classes, k=k),
    ):
        right = int((classify(far.x) == far.labels).sum())
        low, high = wilson_interval(right, len(far.labels))
        yield f"{right / len(far.labels):.2%} ({low:.1%} to {high:.1%})"


def _row(*cells: str) -> str:
    return "".join(f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="paralab probe", description=__doc__)
    add_checkpoint(parser, of="a vicreg model")
    parser.add_argument(
        "--supervised", metavar="DIR", help="Checkpoint of a resnet model to stand beside it (default: none)"
    )
    parser.add_argument(
        "--labels",
        type=whole(2),
        metavar="N",
        help="Learn from this many labelled training images, the first ones (default: all)",
    )
    parser.add_argument(
        "--k", type=whole(1), default=20, metavar="K", help="Number of neighbours that vote (default: 20)"
    )
    return parser.parse_args(argv)
