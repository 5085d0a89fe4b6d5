"""A class that is left out is nowhere, and the rest is as it was."""

import numpy as np
import pytest
import torch

from paralab.data import open_dataset
from paralab.errors import ConfigError, DataError
from paralab.models import SPECS
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve


@pytest.mark.parametrize("model", ["vicreg", "resnet"])
def test_the_rest_is_as_it_was(model: str) -> None:
    config = SPECS[model].config("tiny")
    whole = open_dataset("mnist", config=config).samples  # type: ignore[attr-defined]
    rest = open_dataset("mnist", config=config, held_out_class=3)
    images, labels = whole.load(np.arange(whole.n_samples))
    got, of = rest.samples.load(np.arange(rest.n_samples))  # type: ignore[attr-defined]
    assert torch.equal(got, images[labels != 3]) and torch.equal(of, labels[labels != 3])
    assert sorted(set(of.tolist())) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    other = open_dataset("mnist", config=config, held_out_class=4)
    assert len({whole.sha256, rest.sha256, other.sha256}) == 3, "checkpoints tell them apart"
    assert rest.found.endswith("; those of class 3 are left out")


def test_a_run_says_what_it_left_out() -> None:
    work = resolve(RunConfig(model="vicreg", size="tiny", nproc=1, held_out_class=3))
    assert work.data_name == "mnist without class 3" and "--held-out-class 3" in work.command
    assert work.dataset("validation").n_samples < 2000


def test_a_class_that_there_is_not_is_refused() -> None:
    with pytest.raises(DataError, match=r"--held-out-class 10: the classes of mnist are 0, 1, .*, 9: use one of these"):
        resolve(RunConfig(model="vicreg", size="tiny", nproc=1, held_out_class=10)).dataset()
    with pytest.raises(ConfigError, match="--held-out-class does not apply to gpt2, which has no classes"):
        resolve(RunConfig(model="gpt2", size="tiny", nproc=1, held_out_class=3))
