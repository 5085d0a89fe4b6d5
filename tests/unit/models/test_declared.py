"""What is refused of a model of one's own before it is trained, in one line with what is needed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paralab.errors import ModelError
from paralab.models import SPECS
from paralab.models.declared import check_loss
from paralab.models.spec import ModelSpec
from paralab.options.config import RunConfig
from paralab.parity.model_rules import broken
from paralab.processes.failure import Progress, first_failure
from tests.unit.commands.test_check_model import MODEL


@dataclass(frozen=True)
class Config:
    task: str = "text"


def spec(build: Callable[[Any], Any], **fields: Any) -> ModelSpec:
    told: dict[str, Any] = {"example": lambda config, n: ((), torch.zeros(n)), "data": lambda config: "alice"}
    return ModelSpec(name="net", sizes={"tiny": Config()}, build=build, **(told | fields))


def with_parameter(values: torch.Tensor, *, trained: bool = False) -> Callable[[Any], nn.Module]:
    def build(config: Any) -> nn.Module:
        module = nn.Linear(2, 2)
        module.extra = nn.Parameter(values.to("meta"), requires_grad=trained)
        return module

    return build


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda config: None, "build of net returns a NoneType: an nn.Module is needed"),
        (lambda config: nn.LazyLinear(2), "weight of net has no shape before the first batch: use nn.Linear"),
        (with_parameter(torch.zeros(2, dtype=torch.complex64)), "parameter extra of net is complex: keep its real"),
        (
            with_parameter(torch.zeros(2, dtype=torch.int64)),
            "extra of net is of torch.int64, which is not trained: reg",
        ),
        (with_parameter(torch.zeros(0, 3)), "parameter extra of net has no elements: leave it out"),
        (lambda config: nn.Linear(2, 2).requires_grad_(False), "net has no parameter that is trained"),
        (lambda config: nn.Identity(), "net has no parameter that is trained"),
        (
            lambda config: float(nn.Linear(2, 2).weight.detach().sum()),
            r"test_declared\.py:\d+: RuntimeError: .*on the meta device",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(build: Callable, says: str) -> None:
    own = spec(build)
    with pytest.raises(ModelError, match=says):
        own.on_meta(own.config())
    found = broken(own, own.config())
    assert len(found) == 1 and found[0].rule.startswith("3, "), found


def test_a_model_whose_other_parameters_are_frozen_is_taken() -> None:
    own = spec(with_parameter(torch.zeros(2)))
    assert own.on_meta(own.config()).extra.shape == (2,)


def test_data_is_the_name_of_a_set() -> None:
    with pytest.raises(ModelError, match="data of net returns a NoneType: the name of a data set is needed"):
        spec(lambda config: nn.Linear(2, 2), data=lambda config: None).config()


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (None, "a NoneType"),
        ({"loss": torch.zeros(())}, "a dict"),
        ((torch.zeros(()),), "a tuple"),
        (torch.zeros(3, requires_grad=True), r"a tensor of shape \(3,\)"),
        (torch.zeros(()), "a number that no parameter has led to"),
    ],
)
def test_what_is_no_mean_loss_is_refused(loss: Any, got: str) -> None:
    with pytest.raises(ModelError, match=f"forward of net returns {got} where it is given targets: the mean loss"):
        check_loss(loss, "net")
    good = torch.zeros((), requires_grad=True)
    assert check_loss(good, "net") is good


def test_a_failure_in_a_model_file_says_its_line(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        MODEL.replace("        logits = self.head", '        raise ValueError("late")\n        logits = self.head')
    )
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if "late" in text)
    own = SPECS[RunConfig(model=f"{file}:SPEC").model]
    with pytest.raises(ValueError) as raised:
        own.on_meta(own.config())(torch.zeros(1, 4, dtype=torch.int64, device="meta"))
    failure = first_failure(0, Progress(), raised.value)
    assert failure is not None and failure.reason == f"net.py:{line}: ValueError: late"
