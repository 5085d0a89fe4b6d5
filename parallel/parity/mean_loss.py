"""Whether the loss of a model of one's own is a mean over its samples, tried out with values on the CPU."""

import torch
from torch import Tensor

from paralab.models.configs import C
from paralab.models.source_lines import place
from paralab.models.spec import SAMPLES_TRIED, ModelSpec


def mean_problem(spec: ModelSpec[C], config: C) -> tuple[str, str] | None:
    """Return where a loss is computed that equal samples change by their number, and what to do; None for a mean.

    Samples that are all equal have the loss of one of them, whatever a model does with statistics of a batch. A model
    that such values do not suit is not judged.
    """
    model = spec.built(config, seed=0).train()
    losses = []
    for n in (SAMPLES_TRIED, 2 * SAMPLES_TRIED):
        inputs, targets = spec.example(config, 1)
        try:
            with torch.no_grad():
                loss = model(*(_equal(x, n) for x in inputs), targets=_equal(targets, n))
        except Exception:  # of the model
            return None
        losses.append(float(loss))
    fewer, more = losses
    if not abs(more - fewer) > 1e-3 * abs(fewer) + 1e-6:  # or one of them is no number
        return None
    problem = (
        f"the loss of {2 * SAMPLES_TRIED} equal samples is {more:.5g} and that of {SAMPLES_TRIED} of them {fewer:.5g}: "
        'the mean over samples is needed, leave reduction="sum" out or divide by their number (one that compares '
        "samples with each other says whole_batch=True)"
    )
    return place(type(model).forward), problem


def _equal(example: Tensor, n: int) -> Tensor:
    """Return n equal samples of the shape (1, ...) and dtype of an example: class or word 0, or numbers above 0."""
    one = torch.zeros_like(example, device="cpu")
    if example.is_floating_point():
        one.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    return one.expand(n, *example.shape[1:])
