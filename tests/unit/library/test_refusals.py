"""What a program gets wrong is said in one line, before anything is trained: what was got, needed, and what to type."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from paralab import Pipeline, Trainer, World, parallelize, prove
from paralab.errors import ConfigError, DataError, DivergedError, LayoutError, ParalabError, WorldError
from tests.dist.own_modules import (
    BLOCKS,
    ENDS,
    SHAPE,
    Attending,
    Bare,
    Mixed,
    Plain,
    Repeated,
    TwoTowers,
    points,
    words,
    words_loss,
)

CPU = torch.device("cpu")
BATCH = words(torch.Generator().manual_seed(0))
POINTS = points(torch.Generator().manual_seed(0))


def made(model: Any, layout: str = "single", *, processes: int = 1, **options: Any) -> Trainer:
    """Ask for a trainer where so many processes are said to be; what is refused is so before they have to answer."""
    return parallelize(model, layout, world=World(0, processes, CPU), **options)


class Flat(nn.Module):
    """Attention and MLP stand in one module, as in the blocks of many a program."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"qkv": (8, 24), "out": (8, 8), "up": (8, 32), "down": (32, 8)}
        self.layers = nn.ModuleList(nn.ModuleDict({k: nn.Linear(*v) for k, v in sizes.items()}) for _ in range(2))


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Plain()


class Alternating(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.layers[0], self.layers[1]] * 2)


def alone(optimizer: Any) -> Callable[[], object]:
    return lambda: made(Plain(), loss=words_loss, optimizer=optimizer)


def closed(module: nn.Module) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda _: SGD(module.parameters(), lr=0.1)


REFUSED: dict[str, tuple[Callable[[], object], type[ParalabError], str]] = {
    "no blocks under a pipeline": (
        lambda: made(Repeated(), "pp2/gpipe", processes=2),
        LayoutError,
        "Repeated has no blocks for 2 pipeline stages: .* blocks='layers",
    ),
    "a sequence that no ranks can share": (
        lambda: made(Plain(), "cp2", processes=2, loss=words_loss),
        LayoutError,
        r"Plain has not said how its sequences divide: give sequence=.*SequenceShape\(length, .* a layout without cp",
    ),
    "a sequence that its attention does not share": (
        lambda: made(Plain(), "cp2", processes=2, loss=words_loss, sequence=SHAPE),
        LayoutError,
        r"Plain attends by no Attend .*, so that a rank would see its own positions alone: .* a layout without cp",
    ),
    "a sequence that does not divide": (
        lambda: made(Attending(), "cp3", processes=3, loss=words_loss, sequence=SHAPE),
        LayoutError,
        "cp=3 with ring needs 2 x cp = 6 to divide the 8 positions of Attending: use a cp of 2, 4",
    ),
    "experts that are nowhere": (
        lambda: made(Mixed(), "dp2.ep2", processes=2, loss=words_loss),
        LayoutError,
        r"Mixed has not said where its experts are: give experts='layers.\*.experts', .* a layout without ep",
    ),
    "experts of another name": (
        lambda: made(Mixed(), "dp2.ep2", processes=2, loss=words_loss, experts="layers.*.expert"),
        LayoutError,
        r"experts='layers.\*.expert' matches no module of Mixed .did you mean layers.\*.experts",
    ),
    "experts that are modules": (
        lambda: made(Mixed(), "dp2.ep2", processes=2, loss=words_loss, experts="layers.*"),
        LayoutError,
        "matches a MixedBlock that does not hold its experts as tensors of its own whose first dim counts them",
    ),
    "experts that no plan of tensor ranks has": (
        lambda: made(Mixed(), "dp2.ep2.tp2", processes=4, loss=words_loss, experts="layers.*.experts", tensor=BLOCKS),
        LayoutError,
        r"ep2 with tp2 and experts='layers.\*.experts': .* tensor={'layers.\*.experts': 'experts', ...}: give these",
    ),
    "blocks without ends": (
        lambda: made(Plain(), "pp2/gpipe", processes=2),
        LayoutError,
        r"give pipeline=paralab.Pipeline\(before='embed', after=\('norm', 'head'\)\) and example=batch, or a function",
    ),
    "stages without an example": (
        lambda: made(Plain(), "pp2/gpipe", processes=2, pipeline=ENDS, loss=words_loss),
        LayoutError,
        "example=batch",
    ),
    "a stage more than blocks": (
        lambda: made(Plain(), "pp8/gpipe", processes=8, pipeline=ENDS, example=BATCH, loss=words_loss),
        LayoutError,
        "8 pipeline stages for the 4 blocks of Plain: use pp4 or less",
    ),
    "one block in two places of a pipeline": (
        lambda: made(Alternating(), "pp2/gpipe", processes=2, pipeline=ENDS, example=BATCH, loss=words_loss),
        LayoutError,
        "layers.2 of Alternating is layers.0 as well: .* a layout without pp",
    ),
    "a module that there is not in a pipeline": (
        lambda: made(Plain(), "pp2/gpipe", processes=2, pipeline=Pipeline(before="embd", after="head"), example=BATCH),
        LayoutError,
        r"'embd', and there is none \(did you mean embed\?\)",
    ),
    "a parameter that no stage uses": (
        lambda: made(
            Plain(), "pp2/gpipe", processes=2, pipeline=Pipeline("embed", "head"), example=BATCH, loss=words_loss
        ),
        LayoutError,
        "norm.weight is in no block, and neither before nor after of pipeline uses it",
    ),
    "no tensor plan": (
        lambda: made(Plain(), "tp2", processes=2),
        LayoutError,
        r'give tensor=\{"layers.\*.up": "column", "layers.\*.down": "row"\}',
    ),
    "no tensor plan of layers of several kinds in one module": (
        lambda: made(Flat(), "tp2", processes=2),
        LayoutError,
        r'"layers.\*.qkv": "column", "layers.\*.out": "row", "layers.\*.up": "column", "layers.\*.down": "row"\}',
    ),
    "no tensor plan of a Sequential": (
        lambda: made(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)), "tp2", processes=2),
        LayoutError,
        r'give tensor=\{"0": "column", "2": "row"\}',
    ),
    "a tensor pattern that matches nothing": (
        lambda: made(Plain(), "tp2", processes=2, tensor={"layer.*.up": "column"}),
        LayoutError,
        r"'layer.\*.up'.* matches no module of the model \(did you mean layers.\*.up\?\)",
    ),
    "a tensor style that there is not": (
        lambda: made(Plain(), "tp2", processes=2, tensor={"layers.*.up": "columns"}),
        LayoutError,
        r"'columns'.* \(did you mean column\?\)",
    ),
    "a tensor style of another layer": (
        lambda: made(Plain(), "tp2", processes=2, tensor={"layers.*.norm": "column"}),
        LayoutError,
        "layers.0.norm is a LayerNorm",
    ),
    "a layer that does not divide": (
        lambda: made(Plain(), "tp3", processes=3, tensor=BLOCKS),
        LayoutError,
        "tp=3 does not divide the outputs of layers.0.up, 32, in Plain: use a tp of 1, 2, 4",
    ),
    "a pattern of blocks that matches nothing": (
        lambda: made(Plain(), blocks="layer.*"),
        LayoutError,
        r"blocks='layer.\*' matches no module \(did you mean layers.\*\?\)",
    ),
    "blocks that cannot be called": (
        lambda: made(TwoTowers(), blocks="towers.*"),
        LayoutError,
        "towers.left is a ModuleList, which has no forward .* blocks='towers.left.\\*'",
    ),
    "another number of processes": (
        lambda: made(Plain(), "dp2.tp2", processes=2, tensor=BLOCKS),
        WorldError,
        "needs 4 processes, 2 started: type torchrun --nproc-per-node 4",
    ),
    "an unknown strategy": (
        lambda: made(Plain(), "zero-three"),
        LayoutError,
        r"'zero-three' is no strategy",
    ),
    "a misspelt strategy": (
        lambda: made(Plain(), "pipline", processes=2),
        LayoutError,
        "did you mean",
    ),
    "sequence parallelism": (
        lambda: made(Plain(), "tp2/sp", processes=2, tensor=BLOCKS),
        LayoutError,
        "Plain has no sequence-parallel form: leave sp out",
    ),
    "something that is no module": (lambda: made("model"), ConfigError, "a str in the place of the model"),
    "a function that makes no module": (lambda: made(lambda: 3), ConfigError, "a int in the place of the model"),
    "a module without values": (lambda: made(on_meta()), ConfigError, "is on the meta device .* initialise="),
    "nothing to train": (
        lambda: made(Plain().requires_grad_(False), loss=words_loss),
        ConfigError,
        "Plain has no parameter that is trained",
    ),
    "a precision that there is not": (
        lambda: made(Plain(), precision="float16"),
        ConfigError,
        "precision",
    ),
    "checkpointing of something": (lambda: made(Plain(), checkpointing="some"), ConfigError, "checkpointing"),
    "an accumulation of nothing": (lambda: made(Plain(), accumulation=0), ConfigError, "accumulation"),
    "a compile mode that there is not": (lambda: made(Plain(), compile="fast"), ConfigError, "compile"),
    "a loss that is not a function": (lambda: made(Plain(), loss="mse"), ConfigError, "loss"),
    # optimizers
    "an optimizer that is a name": (alone("adamw"), ConfigError, "optimizer"),
    "an optimizer that is made already": (
        alone(SGD(Plain().parameters(), lr=0.1)),
        ConfigError,
        "optimizer is made already",
    ),
    "an optimizer of the old module": (alone(closed(Plain())), ConfigError, "parameters that are not those"),
    "a function that makes no optimizer": (alone(lambda parameters: None), ConfigError, "made a NoneType"),
    "an optimizer that calls the model": (
        alone(lambda parameters: torch.optim.LBFGS(parameters)),
        ConfigError,
        "LBFGS calls the model again .*closure",
    ),
    "a scheduler that needs a metric": (
        lambda: made(Plain(), loss=words_loss, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau),
        ConfigError,
        "ReduceLROnPlateau",
    ),
    "a scheduler that is none": (
        lambda: made(Plain(), loss=words_loss, scheduler=lambda optimizer: 0.1),
        ConfigError,
        r"scheduler made a float, which has no step\(\)",
    ),
    # batches and losses
    "a loss for each sample": (
        lambda: made(Bare(), loss=lambda out, y: (out - y).square()).step(*POINTS),
        ConfigError,
        r"the loss is torch.float32 of shape \(8, 3\): the mean over the samples is needed",
    ),
    "a loss that is a number": (
        lambda: made(Bare(), loss=lambda out, y: 1.0).step(*POINTS),
        ConfigError,
        "the loss is float",
    ),
    "a loss that nothing leads to": (
        lambda: made(Bare(), loss=lambda out, y: out.detach().mean()).step(*POINTS),
        ConfigError,
        "the loss does not depend on",
    ),
    "no loss at all": (
        lambda: made(Bare()).step(POINTS[0]),
        ConfigError,
        "the loss is torch.float32 of shape",
    ),
    "a loss that is no number": (
        lambda: made(Bare(), loss=lambda out, y: (out - y).mean() * float("nan")).step(*POINTS),
        DivergedError,
        "the loss of step 0 is nan: use a lower learning rate or clip_norm",
    ),
    "a batch with a number in it": (
        lambda: made(Bare(), loss=F.mse_loss).step((POINTS[0], 3), POINTS[1]),
        DataError,
        "holds 3 of type int",
    ),
    "rows of two counts": (
        lambda: made(Bare(), loss=F.mse_loss).step(POINTS[0], POINTS[1][:4]),
        DataError,
        "4 and 8 rows",
    ),
    "no batch": (lambda: made(Bare(), loss=F.mse_loss).step(), DataError, "0 arguments"),
    "three arguments": (lambda: made(Bare(), loss=F.mse_loss).step(*POINTS, 3), DataError, "3 arguments"),
    "batches that are nothing": (lambda: prove(made(Bare(), loss=F.mse_loss), []), DataError, "got no batches"),
    "rows that do not divide": (
        lambda: made(Bare(), loss=F.mse_loss, accumulation=3).step(*POINTS),
        DataError,
        "8 rows for 3 micro-batches",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_line_says_what_is_wrong(case: str) -> None:
    run, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message) as caught:
        run()
    assert type(caught.value) is kind and "\n" not in str(caught.value) and len(str(caught.value)) < 500
