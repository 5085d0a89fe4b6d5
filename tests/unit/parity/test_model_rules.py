"""The rules of models/spec.py, checked on every registered model at sizes that take milliseconds."""

import copy
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight
from torch.testing import assert_close

from paralab.models import SPECS
from paralab.models.resnet import ResNetConfig
from paralab.models.spec import ModelSpec
from tests.tiny import TINY
from tests.unit.thread_ranks import ThreadRanks

CASES: dict[str, tuple[ModelSpec, Any]] = {
    **{name: (SPECS[tiny["model"]], SPECS[tiny["model"]].config(tiny["size"])) for name, tiny in TINY.items()},
    "resnet-batch": (SPECS["resnet"], replace(SPECS["resnet"].config("tiny"), norm="batch")),
    "resnet-group": (SPECS["resnet"], replace(SPECS["resnet"].config("tiny"), norm="group")),
    "resnet-channels-last": (SPECS["resnet"], replace(SPECS["resnet"].config("tiny"), channels_last=True)),
    "bottleneck": (
        SPECS["resnet"],
        ResNetConfig(depths=(1, 2), widths=(4, 8), bottleneck=True, imagenet_stem=True, image_size=32, channels=3),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[ModelSpec, Any]:
    return CASES[request.param]


def initialized(spec: ModelSpec, config: Any, *, seed: int = 0) -> nn.Module:
    model = spec.build(config)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        spec.init(config, name, tensor.detach(), torch.Generator().manual_seed(seed + sum(name.encode())))
    return model


def batch(spec: ModelSpec, config: Any, size: int = 4) -> tuple[tuple[Tensor, ...], Tensor]:
    """Random values of the declared shapes and dtypes: noise levels positive, numbers of classes or words in range."""
    generator = torch.Generator().manual_seed(0)
    n_integers = getattr(config, "vocab_size", None) or getattr(config, "n_classes", 0)

    def fill(example: Tensor) -> Tensor:
        if not example.is_floating_point():
            return torch.randint(n_integers, example.shape, generator=generator)
        values = torch.randn(example.shape, generator=generator)
        return values.exp() if values.dim() == 1 else values

    inputs, targets = spec.example(config, size)
    return tuple(fill(tensor) for tensor in inputs), fill(targets)


@dataclass
class Gradients:
    """What one backward pass over all stages left behind, by the name of the parameter that owns the storage."""

    loss: Tensor
    parameters: dict[str, Tensor]

    @classmethod
    def collect(cls, spec: ModelSpec, loss: Tensor, modules: list[nn.Module]) -> "Gradients":
        total: dict[str, Tensor] = {}
        for module in modules:
            for name, parameter in module.named_parameters():
                name = (spec.tied or {}).get(name, name)
                total[name] = total[name] + parameter.grad if name in total else parameter.grad
        return cls(loss.detach(), total)


def whole(spec: ModelSpec, model: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor) -> Gradients:
    model = copy.deepcopy(model)
    loss = model(*inputs, targets=targets)
    loss.backward()
    return Gradients.collect(spec, loss, [model])


def cut(spec: ModelSpec, model: nn.Module, n_stages: int) -> list[nn.Module]:
    """Cut into stages the way a pipeline does: delete blocks, put None for the ends that live elsewhere."""
    stages = []
    for i in range(n_stages):
        stage: Any = copy.deepcopy(model)
        keys = list(stage.blocks)
        mine = torch.arange(len(keys)).tensor_split(n_stages)[i].tolist()
        for j, key in enumerate(keys):
            if j not in mine:
                del stage.blocks[key]
        for name in (spec.first if i > 0 else ()) + (spec.last if i < n_stages - 1 else ()):
            setattr(stage, name, None)
        stages.append(stage)
    return stages


def run_stages(
    spec: ModelSpec, stages: list[nn.Module], inputs: tuple[Tensor, ...], targets: Tensor, *, zero_bubble: bool
) -> Gradients:
    """Run forward and backward a stage at a time, over boundaries that only values and gradients cross."""
    received, sent = [inputs], []
    for i, stage in enumerate(stages):
        output = stage(*received[i], targets=targets) if i == len(stages) - 1 else stage(*received[i])
        sent.append(output if isinstance(output, tuple) else (output,))
        received.append(tuple(tensor.detach().clone().requires_grad_() for tensor in sent[-1]))
    loss = sent[-1][0].detach().clone()
    grads: list[Tensor] | None = None
    for i in reversed(range(len(stages))):
        if zero_bubble and i > 0:
            dinputs, groups = stage_backward_input(list(sent[i]), grads, list(received[i]), stages[i].parameters())
            stage_backward_weight(stages[i].parameters(), groups)
            grads = list(dinputs)
        else:
            torch.autograd.backward(sent[i], grads)
            grads = [tensor.grad for tensor in received[i]]
        if i > 0:  # the receiver's buffers are dense, in the default format
            assert all(t.is_floating_point() and t.is_contiguous() for t in (*sent[i - 1], *grads))
    return Gradients.collect(spec, loss, stages)


@pytest.mark.parametrize("zero_bubble", [False, True])
@pytest.mark.parametrize("n_stages", [2, 3])
def test_stages_give_the_bits_of_the_whole(case: tuple[ModelSpec, Any], n_stages: int, zero_bubble: bool) -> None:
    spec, config = case
    if spec.whole_batch:
        pytest.skip(f"{spec.name}: its loss is over the whole batch, which no pipeline may cut")
    model, (inputs, targets) = initialized(spec, config), batch(spec, config)
    expected = whole(spec, model, inputs, targets)
    actual = run_stages(spec, cut(spec, model, n_stages), inputs, targets, zero_bubble=zero_bubble)
    assert torch.equal(actual.loss, expected.loss)
    assert actual.parameters.keys() == expected.parameters.keys()
    for name, grad in expected.parameters.items():
        if zero_bubble:  # the gradients of a weight used twice are added in another order
            assert_close(actual.parameters[name], grad, rtol=1e-5, atol=1e-7, msg=name.__add__)
        else:
            assert torch.equal(actual.parameters[name], grad), name


def test_every_parameter_has_a_gradient(case: tuple[ModelSpec, Any]) -> None:
    spec, config = case
    result = whole(spec, initialized(spec, config), *batch(spec, config))
    assert result.loss.shape == () and result.loss.dtype == torch.float32
    for name, grad in result.parameters.items():
        assert grad.isfinite().all() and grad.abs().max() > 0, name


def test_init_overwrites_every_value(case: tuple[ModelSpec, Any]) -> None:
    spec, config = case
    model = spec.build(config)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        a, b = (torch.full_like(tensor, fill).detach() for fill in (7, 8))
        spec.init(config, name, a, torch.Generator().manual_seed(1))
        spec.init(config, name, b, torch.Generator().manual_seed(1))
        assert torch.equal(a, b), name


def test_builds_and_runs_without_values(case: tuple[ModelSpec, Any]) -> None:
    spec, config = case
    with torch.device("meta"):
        model = spec.build(config)
        inputs, _ = spec.example(config, 2)
    assert model(*inputs).is_meta
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    # nothing is held outside the state dict, where no initialisation would reach it
    assert {name for name, _ in model.named_buffers()} <= model.state_dict().keys()


def test_declared_names_exist(case: tuple[ModelSpec, Any]) -> None:
    spec, config = case
    with torch.device("meta"):
        model: Any = spec.build(config)
    assert list(model.blocks) == [name.removeprefix("blocks.") for name in spec.blocks(config)]
    assert {*spec.first, *spec.last, "blocks"} == {name for name, _ in model.named_children()}
    modules = dict(model.named_modules())
    for pattern in spec.tensor_plan(config):
        assert any(fnmatch(name, pattern) for name in modules), pattern


def test_tensor_divides_is_what_the_plan_needs(case: tuple[ModelSpec, Any]) -> None:
    """A degree that divides the declared numbers divides every dimension that the plan splits."""
    spec, config = case
    numbers = spec.tensor_divides(config).values()
    degrees = [tp for tp in range(2, 9) if all(number % tp == 0 for number in numbers)]
    assert degrees
    with torch.device("meta"):
        model = spec.build(config)
    for pattern, style in spec.tensor_plan(config).items():
        for name, module in model.named_modules():
            if fnmatch(name, pattern) and style in ("column", "row", "channels"):
                size = module.weight.shape[1 if style == "row" else 0]
                assert all(size % tp == 0 for tp in degrees), name


def split_module(module: Any, style: str, rank: int, ranks: ThreadRanks) -> None:
    """Keep one rank's part, as the tensor strategy does: forward only, and a row's bias on the first rank alone."""
    if style == "row":
        module.weight = nn.Parameter(module.weight.chunk(ranks.size, dim=1)[rank])
        if module.bias is not None and rank > 0:
            module.bias = None
        module.register_forward_hook(lambda _module, _args, output: ranks.all_reduce(output))
        return
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() > 0:
            tensor.data = tensor.data.chunk(ranks.size)[rank]
    for name in ("num_features", "num_channels", "num_groups"):
        if hasattr(module, name):
            setattr(module, name, getattr(module, name) // ranks.size)


def test_split_modules_give_the_loss_of_the_whole(case: tuple[ModelSpec, Any]) -> None:
    spec, config = case
    model, (inputs, targets) = initialized(spec, config), batch(spec, config)
    ranks = ThreadRanks(2)

    def loss_of(rank: int) -> Tensor:
        part = copy.deepcopy(model)
        for pattern, style in spec.tensor_plan(config).items():
            for name, module in part.named_modules():
                if fnmatch(name, pattern) and style in ("column", "row", "channels"):
                    split_module(module, style, rank, ranks)
        with torch.no_grad():
            return part(*inputs, targets=targets)

    losses = ranks.run(loss_of)
    assert ranks.calls > 0
    for loss in losses:
        assert_close(loss, model(*inputs, targets=targets).detach(), rtol=1e-5, atol=0)
