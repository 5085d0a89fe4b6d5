"""What a spec leaves out is found in the module: the built-in models, which say it, are found to be as they say."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paralab.axes.initialise import FirstValues, initialise
from paralab.errors import ModelError
from paralab.models import SPECS
from paralab.models.found import look_into
from paralab.models.spec import ModelSpec

SILENT: dict[str, Any] = dict.fromkeys(
    ("init", "n_blocks", "first", "last", "tied", "flops", "unit", "units_per_sample")
)


SAID = [(name, size) for name, spec in SPECS.items() if spec.names_blocks for size in spec.sizes]


@pytest.mark.parametrize(("name", "size"), SAID[::3])
def test_what_is_found_is_what_the_built_in_models_say(name: str, size: str) -> None:
    said, found = SPECS[name], replace(SPECS[name], default_size="", tiny_size="", **SILENT)
    config = said.config(size)
    assert found.default_size == found.tiny_size == next(iter(said.sizes))
    assert found.blocks(config) == said.blocks(config) and len(said.blocks(config)) > 1
    assert found.ends(config) == said.ends(config) == (said.first, said.last)
    assert found.tied_in(config) == said.tied_in(config)
    assert found.unit_of(config) == said.unit_of(config)
    assert found.units_in_sample(config) == said.units_in_sample(config)


@pytest.mark.parametrize(
    ("name", "size"),
    [("gpt2", "nano"), ("gpt2", "124m"), ("resnet", "50"), ("diffusion", "dit-s/2"), ("logistic", "7")],
)
def test_counted_operations_are_those_of_the_formula(name: str, size: str) -> None:
    said, found = SPECS[name], replace(SPECS[name], **SILENT)
    counted, formula = found.flops_of(said.config(size)), said.flops_of(said.config(size))
    assert counted.formula == "counted" and formula.formula != "counted"
    assert counted.per_sample == pytest.approx(formula.per_sample, rel=0.01)  # edges of images, padding of a vocabulary


def layer(width: int = 4) -> nn.Module:
    return nn.Linear(width, width)


class Root(nn.Module):
    """Modules by name, and a parameter beside them."""

    def __init__(self, scale: bool = False, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        if scale:
            self.scale = nn.Parameter(torch.ones(1))


def inner(**modules: nn.Module) -> nn.Module:
    return Root(scale=False, **modules)


@pytest.mark.parametrize(
    ("model", "blocks", "first", "last"),
    [
        (lambda: Root(a=layer(), layers=nn.ModuleList([layer(), layer()]), b=layer()), "layers.0 layers.1", "a", "b"),
        (lambda: Root(layers=nn.Sequential(layer(), layer())), "layers.0 layers.1", "", ""),
        (lambda: Root(a=layer(), b=layer()), "", "", ""),  # no list
        (lambda: Root(layers=nn.ModuleList([layer()])), "", "", ""),  # one layer is no repetition
        (lambda: Root(layers=nn.Sequential(layer(), nn.ReLU())), "", "", ""),  # nor are two kinds
        (lambda: Root(layers=nn.ModuleList([nn.ReLU(), nn.ReLU()])), "", "", ""),  # nothing to divide
        (  # the larger of two lists
            lambda: Root(small=nn.ModuleList([layer(), layer()]), big=nn.ModuleDict({"x": layer(9), "y": layer(9)})),
            "big.x big.y",
            "small",
            "",
        ),
        (  # of lists within a list, the outer one
            lambda: Root(h=nn.ModuleList([inner(e=nn.ModuleList([layer(), layer()])) for _ in range(2)]), n=layer()),
            "h.0 h.1",
            "",
            "n",
        ),
        (  # wherever it is
            lambda: Root(t=inner(w=layer(), h=nn.ModuleList([layer(), layer()]), n=layer()), head=layer()),
            "t.h.0 t.h.1",
            "t.w",
            "t.n head",
        ),
        (lambda: Root(True, h=nn.ModuleList([layer(), layer()]), n=layer()), "h.0 h.1", "scale", "n"),
    ],
)
def test_blocks_and_what_is_around_them(model: Callable[[], nn.Module], blocks: str, first: str, last: str) -> None:
    found = look_into(model(), None)
    assert (found.blocks, found.first, found.last) == tuple(tuple(names.split()) for names in (blocks, first, last))


def test_shared_parameters_are_found_under_the_name_that_comes_first() -> None:
    shared = layer()
    model = Root(a=shared, b=shared, c=layer())
    model.c.weight = model.a.weight
    assert look_into(model, None).tied == {"b.weight": "a.weight", "b.bias": "a.bias", "c.weight": "a.weight"}


@dataclass(frozen=True)
class Config:
    width: int = 4
    task: str = "denoise_points"


class Rotary(nn.Module):
    """Values that no state dict holds: a buffer that is not persistent, and a plain tensor."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.width)
        self.down = nn.Linear(config.width, config.width)
        nn.init.constant_(self.down.bias, 0.25)
        with torch.no_grad():
            self.down.weight.copy_(torch.from_numpy(np.random.rand(config.width, config.width)))
        self.register_buffer("inv_freq", 1.0 / torch.arange(1, config.width + 1), persistent=False)
        self.register_buffer("steps", torch.tensor(random.randrange(1000)))
        self.mask = torch.arange(config.width) * 2.0

    def forward(self, x: Tensor, *, targets: Tensor | None = None) -> Tensor:
        """Take and return (batch, width); with targets of that shape return the mean loss ()."""
        out = self.down(self.up(x) * self.inv_freq * self.mask)
        return out if targets is None else (out - targets).square().mean()


def spec_of(build: Callable[[Config], nn.Module], **given: Any) -> ModelSpec[Config]:
    def example(config: Config, n: int) -> tuple[tuple[Tensor, ...], Tensor]:
        return (torch.zeros(n, config.width),), torch.zeros(n, config.width)

    return ModelSpec(
        **{"name": "own", "sizes": {"one": Config()}, "build": build, "example": example, **given},
        data=lambda config: "moons",
    )


def test_values_are_those_of_its_own_init_and_nothing_else_is_drawn_from() -> None:
    spec = spec_of(Rotary)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    want = Rotary(Config())
    got = spec.on_meta(Config(), torch.float64).to_empty(device="cpu")
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]

    initialise(got, spec=spec, config=Config(), seed=3)

    tensors = {**dict(want.named_parameters()), **dict(want.named_buffers()), "mask": want.mask}
    assert set(tensors) == {"up.weight", "up.bias", "down.weight", "down.bias", "inv_freq", "steps", "mask"}
    held = {**dict(got.named_parameters()), **dict(got.named_buffers()), "mask": got.mask}
    for name, tensor in tensors.items():
        torch.testing.assert_close(held[name], tensor, check_dtype=False, rtol=0, atol=0)
    assert got.up.weight.dtype == torch.float64
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert states[2] == np.random.get_state()[1].tolist()  # type: ignore[index]


def test_another_seed_gives_other_values_and_init_comes_before_its_own() -> None:
    def ones(config: Config, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        tensor.fill_(1.0)

    like = torch.empty(4, 4)
    first, again, other = (FirstValues(spec_of(Rotary), Config(), seed)("up.weight", like) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(FirstValues(spec_of(Rotary, init=ones), Config(), 0)("up.weight", like), torch.ones(4, 4))


def test_the_model_is_built_once_for_all_its_values_and_not_for_a_spec_with_init() -> None:
    built = []

    def build(config: Config) -> nn.Module:
        model = Rotary(config)
        built.append(model.up.weight.is_meta)
        return model

    spec = spec_of(build)
    model = spec.on_meta(Config()).to_empty(device="cpu")
    initialise(model, spec=spec, config=Config(), seed=0)
    assert built.count(False) == 1


@dataclass(frozen=True)
class Aimless:
    width: int = 4


@dataclass(frozen=True)
class Odd:
    task: str = "textt"


@dataclass
class Thawed:
    task: str = "text"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (Aimless(), 'Aimless has no task: add the field task: str = "text", or another of text, classify'),
        (Odd(), "task 'textt' of Odd is unknown (did you mean text?)"),
        (Thawed(), "@dataclass(frozen=True) is needed"),
        ({"task": "text"}, "is a dict: an object of a frozen dataclass is needed"),
    ],
)
def test_a_config_that_cannot_be_used_says_what_is_needed(config: Any, says: str) -> None:
    with pytest.raises(ModelError) as raised:
        spec_of(Rotary, sizes={"one": config}).config()
    assert says in str(raised.value)


@pytest.mark.parametrize(("given", "says"), [({"sizes": {}}, "no sizes"), ({"tiny_size": "on"}, "did you mean one")])
def test_a_spec_without_the_size_that_it_names_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        spec_of(Rotary, **given)


def test_operations_that_cannot_be_counted_ask_for_a_formula() -> None:
    class Reads(Rotary):
        def forward(self, x: Tensor, *, targets: Tensor | None = None) -> Tensor:
            """Take and return (batch, width)."""
            return super().forward(x * x.sum().item(), targets=targets)

    with pytest.raises(ModelError, match=r"cannot be counted .*item\(\).*flops=lambda config: Flops"):
        spec_of(Reads).flops_of(Config())


def test_batch_norms_of_torch_are_found_unless_the_spec_says_what_they_cover() -> None:
    norm = spec_of(lambda config: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    assert norm.statistics_over(Config()) == "rank"
    assert spec_of(lambda config: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))).statistics_over(Config()) == "none"
    assert replace(norm, batch_statistics=lambda config: "global").statistics_over(Config()) == "global"
