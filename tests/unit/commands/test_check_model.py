"""`paralab check-model`: each mistake of a model's author is named with its rule and its line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from paralab.axes.check import check_split
from paralab.cli import main
from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.models import SPECS
from paralab.parity.model_rules import broken, check

MODEL = """
import torch
from dataclasses import dataclass
from torch import nn
from torch.nn import functional as F
from paralab.models.spec import ModelSpec, Flops, keep

@dataclass(frozen=True)
class Config:
    width: int = 8
    blocks: int = 3
    seq_len: int = 4
    vocab_size: int = 257
    tokenizer: str = "bytes"
    task: str = "text"

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.gate = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(F.silu(self.gate(x)) * self.up(x))

class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleDict({str(i): Block(config.width) for i in range(config.blocks)})
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size)

    def forward(self, x, *, targets=None):
        if self.embed is not None:
            x = self.embed(x)
        for block in self.blocks.values():
            x = block(x)
        if self.head is None:
            return x
        logits = self.head(self.norm(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

def init(config, name, tensor, generator):
    if name.endswith("bias"):
        tensor.zero_()
    elif "norm" in name:
        tensor.fill_(1.0)
    else:
        tensor.normal_(0.0, 0.02, generator=generator)

def example(config, n):
    tokens = torch.zeros(n, config.seq_len, dtype=torch.int64)
    return (tokens,), tokens

SPEC = ModelSpec(
    name="net",
    sizes={"tiny": Config()},
    default_size="tiny",
    tiny_size="tiny",
    build=Net,
    init=init,
    example=example,
    n_blocks=lambda config: config.blocks,
    first=("embed",),
    last=("norm", "head"),
    flops=lambda config: Flops(1.0, "none"),
    data=lambda config: "alice",
    unit=lambda config: "tokens",
    tensor_plan=lambda config: {"blocks.*.up": "column", "blocks.*.gate": "column", "blocks.*.down": "row"},
    tensor_divides=lambda config: {"width": config.width},
)
"""


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str, str], tuple[int, str, str]]:
    """Return a function that checks the model with one part of its file replaced: exit status, output, and errors."""

    def run(old: str, new: str) -> tuple[int, str, str]:
        assert MODEL.count(old) >= 1, old
        (tmp_path / "net.py").write_text(MODEL.replace(old, new))
        status = main(["check-model", "--model", f"{tmp_path}/net.py:SPEC"])
        return status, *capsys.readouterr()

    return run


def test_a_model_that_keeps_the_rules(told: Callable) -> None:
    status, out, err = told("Net", "Net")
    assert (status, err) == (0, "") and out.startswith("net tiny keeps the rules")


DICT = "nn.ModuleDict({str(i): Block(config.width) for i in range(config.blocks)})"
PLAN = '"blocks.*.gate": "column", '


@pytest.mark.parametrize(
    ("old", "new", "rule", "says", "line"),
    [
        (
            "targets.flatten())",
            "targets.flatten(), reduction='sum')",
            "1, the mean loss",
            "of 4 equal",
            "    def forward(self, x, *",
        ),
        ("str(i): Block", "f'layer{i}': Block", "2, blocks", "no module blocks.0 (did you mean blocks", "class Net"),
        ("n_blocks=lambda config: config.blocks", "n_blocks=lambda config: 4", "2, blocks", "says 4", "class Net"),
        ('last=("norm", "head")', 'last=("head",)', "2, first and last", "'norm' is in neither", ""),
        ('first=("embed",)', 'first=("embed", "stem")', "2, first and last", "'stem' is in first", "class Net"),
        (
            "self.norm = nn.LayerNorm(config.width)",
            "self.norm = nn.LayerNorm(config.width); self.register_buffer('mask', torch.ones(4), persistent=False)",
            "3, initialisation",
            "buffer mask is not persistent",
            "class Net",
        ),
        (
            "self.norm = nn.LayerNorm(config.width)",
            "self.norm = nn.LayerNorm(config.width); self.scale = torch.ones(4)",
            "3, initialisation",
            "self.scale of the model is a plain tensor",
            "class Net",
        ),
        (
            'elif "norm" in name:\n        tensor.fill_(1.0)\n    else:',
            'elif "norm" not in name:',
            "3, initialisation",
            "leaves norm.weight of shape (8,) without a value",
            "def init",
        ),
        (", generator=generator", "", "3, initialisation", "another generator", "def init"),
        (
            "tensor.fill_(1.0)",
            "raise KeyError(name)",
            "3, initialisation",
            "init fails for norm.weight",
            "        tensor.fill_(",
        ),
        ("x = block(x)", "x = F.dropout(block(x), 0.1)", "no random numbers", "dropout", "            x = block(x)"),
        (
            "return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())",
            "return logits",
            "1, the mean loss",
            "shape (2, 4, 257)",
            "    def forward(self, x, *, targets=None):",
        ),
        (
            ".float(), targets.flatten())",
            ".float(), targets.flatten(), reduction='none')",
            "1, the mean loss",
            "shape (8,)",
            "",
        ),
        ("data=lambda", "smooth=False, data=lambda", "1, the mean loss", "the loss is torch.float32", ""),
        ("if self.head is None:", "if False:", "2, a stage", "forward has to skip", "        logits ="),
        (PLAN, "", "tensor_plan", "is missing in the plan", "        return x + self.down("),
        (PLAN, '"blocks.*.gate": "colum", ', "tensor_plan", "'colum' of 'blocks.*.gate' is unknown", ""),
        (PLAN, PLAN + '"blocks.*.gat": "column", ', "tensor_plan", "'blocks.*.gat' matches no module", ""),
        (PLAN, PLAN + '"norm": "row", ', "tensor_plan", "norm is a LayerNorm, and style 'row'", ""),
        (
            '{"width": config.width}',
            '{"third": 3}',
            "tensor_divides",
            "the outputs of blocks.0.up are 32, which 3 ranks",
            "",
        ),
        (
            '{"width": config.width}',
            '{"width": config.width}, sequence_parallel=True',
            "sequence parallelism",
            "no 'scatter_sequence'",
            "",
        ),
        ("return (tokens,), tokens", "return None", "example", "(TypeError: cannot unpack non-iterable", "def example"),
        ("targets.flatten())", "targets.flatten()", "", "net.py:45: '(' was never closed (SyntaxError)", ""),
    ],
)
def test_a_mistake_is_named(told: Callable, old: str, new: str, rule: str, says: str, line: str) -> None:
    status, out, err = told(old, new)
    assert status == 2 and err.count("\n") == 1 and err.startswith("paralab: error: ")
    assert says in out + err and (not rule or f"(rule: {rule}" in out)
    if line:
        number = next(i for i, text in enumerate(MODEL.splitlines(), 1) if text.startswith(line))
        assert out.startswith(f"net.py:{number}: "), out


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, spec in SPECS.items() for size in spec.sizes][::9])
def test_built_in_models_keep_the_rules(name: str, size: str) -> None:
    check(SPECS[name], SPECS[name].config(size))


def test_sequence_parallelism_without_its_place_is_refused_before_any_process_starts() -> None:
    spec = SPECS["gpt2"]
    plan = {pattern: style for pattern, style in spec.tensor_plan(None).items() if style != "scatter_sequence"}
    lacking = replace(spec, tensor_plan=lambda config: plan)
    with pytest.raises(LayoutError, match="no 'scatter_sequence'"):
        check_split(Layout.parse("tp2/sp"), spec=lacking, config=spec.config("tiny"))
    check_split(Layout.parse("tp2"), spec=lacking, config=spec.config("tiny"))


def test_what_cannot_be_split_where_the_sequence_is_gathered_is_refused() -> None:
    spec = SPECS["mixtral"]
    config = spec.config("tiny")
    check(spec, config)  # the router has no style of its own there
    plan = {**spec.tensor_plan(config), "blocks.*.mixture.router.score": "sequence"}
    other = replace(spec, tensor_plan=lambda config: plan)
    says = (
        "score is within a module of style 'whole_sequence': style 'sequence' is not there, use one of column, row, exp"
    )
    with pytest.raises(LayoutError, match=says):
        check_split(Layout.parse("tp2/sp"), spec=other, config=config)
    check_split(Layout.parse("tp2"), spec=other, config=config)
    assert says in next(problem.problem for problem in broken(other, config))


def test_under_sequence_parallelism_every_parameter_has_a_style() -> None:
    spec = SPECS["gpt2"]
    plan = {pattern: style for pattern, style in spec.tensor_plan(None).items() if pattern != "blocks.*.norm?"}
    (problem, *_) = broken(replace(spec, tensor_plan=lambda config: plan), spec.config("tiny"))
    assert problem.rule == "sequence parallelism" and "blocks.0.norm1" in problem.problem
