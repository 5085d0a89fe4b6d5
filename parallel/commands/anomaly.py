"""Look for images of a class that a vicreg model was trained without (paralab train --held-out-class 3).

    paralab anomaly --checkpoint runs/without-3

The score of a held-out image is how far its features are from those of the nearest training images, by cosine. What is
printed is how often an image of the class that was left out scores higher than one of the others (AUROC), with its 95%
interval: 0.5 is chance. Beside it stand the same encoder as it was before training, and pixels in place of features.
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


def main(argv: list[str]) -> int:
    """Print a line for each kind of features; on stderr, which checkpoint was read. Returns: 0.

    Raises: ConfigError for a checkpoint of another model, or of all classes; DataError for one that cannot be read.
    """
    options = _parse(argv)
    from paralab.inference.anomaly import auroc, distance_to_nearest
    from paralab.inference.encoders import encoder_of, samples_of
    from paralab.inference.restore import restore

    trained = restore(options.checkpoint)
    encoder_of(trained, labelled=False)
    held_out = trained.work.run.held_out_class
    if held_out is None:
        raise ConfigError(
            f"{trained.path} was trained on all classes: one of paralab train --model vicreg --held-out-class N is "
            "needed"
        )
    print(f"{trained.work.spec.name} {trained.work.size} from {trained.path}", file=sys.stderr)
    if (known := samples_of(trained, "train").n_samples) < options.k:
        raise ConfigError(f"{known} training images and {options.k} neighbours: use a smaller --k")
    with Phases(Moment.now(), transient=True) as phases:
        for number, (name, near, far) in enumerate(_features(trained, phases)):
            anomalies = far.labels == held_out
            if min(count := int(anomalies.sum()), len(anomalies) - count) < 2:
                raise DataError(
                    f"{count} of {len(anomalies)} held-out images are of class {held_out}: 2 of each are needed"
                )
            if not number:
                print(
                    f"{len(near.labels):,} training images without class {held_out}; held out: {count:,} of it, "
                    f"{len(anomalies) - count:,} of others"
                )
                print(f"{'features':<25}AUROC of the distance to the {options.k} nearest")
            phases.begin(f"{name}: looking for neighbours")
            scores = distance_to_nearest(near.x, k=options.k)(far.x)
            found = auroc(scores[anomalies], scores[~anomalies])
            phases.end()
            print(f"{name:<25}{found.value:.3f} ({found.low:.3f} to {found.high:.3f})", flush=True)
    return 0


def _features(trained: "Trained", phases: Phases) -> "Iterator[tuple[str, Encoded, Encoded]]":
    """Yield what to call features, those of training images, and those of held-out images of all classes."""
    from paralab.data import open_dataset
    from paralab.inference.encoders import encode, encoder_of, pixels_of, samples_of, untrained

    work, known = trained.work, samples_of(trained, "train")
    data = work.run.data or work.spec.data(work.model_config)
    every = open_dataset(data, config=work.model_config, split="validation").samples  # type: ignore[attr-defined]
    phases.begin("before training: statistics of its norms", total=known.n_samples)
    for name, model in (
        (f"trained, step {trained.step}", encoder_of(trained, labelled=False)),
        ("before training", untrained(trained, on_images=phases.advance)),
    ):
        phases.begin(f"{name}: features of images", total=known.n_samples + every.n_samples)
        near, far = (encode(model, samples, on_images=phases.advance) for samples in (known, every))
        phases.end()
        yield name, near, far
    yield "pixels", pixels_of(known), pixels_of(every)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="paralab anomaly", description=__doc__)
    add_checkpoint(parser, of="a vicreg model")
    parser.add_argument(
        "--k", type=whole(1), default=5, metavar="K", help="Number of nearest training images (default: 5)"
    )
    return parser.parse_args(argv)
