"""Inversion: vectors are read as tokens are, and gradient descent finds those after which a text is written."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab import checkpoint
from paralab.axes.initialise import generator_for
from paralab.commands import invert as command
from paralab.curation import train_tokenizer
from paralab.data.tokenizer import get_tokenizer
from paralab.engines import native
from paralab.errors import ConfigError, DataError, ModelError, UsageError
from paralab.inference.inversion import Inverted, Table, greedy, invert, losses
from paralab.inference.shown import Shown
from paralab.layout import Layout
from paralab.models import SPECS
from paralab.models.generation import Choice, generate
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.mesh import make_mesh

SEQ_LEN, KNOWN = 16, 257
SIZES = {"gpt2": "2x32x4v257", "llama": "2x32x4/2f48v257t100"}
TEXT, PROMPT = torch.tensor(list(b"cat")), torch.tensor(list(b"my "))


@pytest.fixture(scope="module", params=SIZES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    spec = SPECS[request.param]
    config = replace(spec.config(SIZES[request.param]), seq_len=SEQ_LEN)
    model = spec.build(config).double().eval()
    for name, tensor in model.state_dict().items():
        spec.init(config, name, tensor, generator_for(0, name))
        tensor.mul_(5)  # so that what a model writes depends on what it reads
    return model


@pytest.fixture(scope="module")
def table(model: nn.Module) -> Table:
    return Table.of(model, KNOWN)


def find(model: nn.Module, table: Table, *, restarts: int = 2, seed: int = 0, steps: int = 60) -> Inverted:
    return invert(model, table, TEXT, length=4, restarts=restarts, steps=steps, learning_rate=0.3, seed=seed)


def test_the_embedding_of_tokens_is_told_from_that_of_positions(model: nn.Module, table: Table) -> None:
    assert table.module is model.embed.tokens
    assert torch.equal(table.vectors, model.embed.tokens.weight[:KNOWN])
    with pytest.raises(ModelError, match=r"no nn\.Embedding"):
        Table.of(Constant(), 3)


class Constant(nn.Module):
    """A model that reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.weight.expand(*tokens.shape, 5)


def test_the_loss_after_the_vectors_of_tokens_is_that_of_the_tokens(model: nn.Module, table: Table) -> None:
    whole = torch.cat([PROMPT, TEXT])
    want = F.cross_entropy(model(whole[None, :-1])[0, len(PROMPT) - 1 :], TEXT)
    got = losses(model, table, torch.stack([table.vectors[PROMPT], table.vectors[PROMPT + 1]]), TEXT)
    torch.testing.assert_close(got[0].double(), want, rtol=1e-5, atol=1e-6)
    assert abs(got[1] - got[0]) > 1e-3


def test_greedy_text_after_the_vectors_of_tokens_is_that_after_the_tokens(model: nn.Module, table: Table) -> None:
    drawn = generate(model, PROMPT[None], seq_len=SEQ_LEN, tokens=9, choice=Choice(greedy=True), known=KNOWN)
    want = [int(token) for token in drawn]
    assert greedy(model, table, table.vectors[PROMPT][None], tokens=9, known=KNOWN).tolist() == [want]


def test_vectors_are_found_after_which_the_text_is_written(model: nn.Module, table: Table) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = find(model, table)
    assert found.curve.shape == (61, 2) and (found.lowest <= found.curve[0]).all()
    torch.testing.assert_close(losses(model, table, found.vectors, TEXT), found.lowest)
    torch.testing.assert_close(found.lowest, found.curve.min(0).values)
    written = greedy(model, table, found.vectors[found.best][None], tokens=len(TEXT), known=KNOWN)
    assert written.tolist() == [TEXT.tolist()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_each_restart_is_that_of_its_seed(model: nn.Module, table: Table) -> None:
    together, second = find(model, table, steps=5), find(model, table, steps=5, restarts=1, seed=1)
    torch.testing.assert_close(together.curve[:, 1], second.curve[:, 0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together.curve[:, 0], together.curve[:, 1])


def test_the_learning_rate_falls_along_a_cosine(
    model: nn.Module, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    take = torch.optim.Adam.step

    def step(self: torch.optim.Adam) -> None:
        rates.append(self.param_groups[0]["lr"])
        take(self)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    find(model, table, steps=4)
    assert rates == pytest.approx([0.3 * table.scale * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)])


def test_the_nearest_token_of_its_own_vector_is_itself(table: Table) -> None:
    tokens = torch.tensor([[0, 5], [256, 97]])
    nearest, distance = table.nearest(table.vectors[tokens] + 1e-6)
    assert torch.equal(nearest, tokens) and (distance < 1e-4).all()
    assert 0.5 < table.typical_distance / (table.scale * (2 * table.vectors.shape[1]) ** 0.5) < 1.5


def test_the_tokens_of_the_text_are_counted_up_to_the_first_that_differs(model: nn.Module, table: Table) -> None:
    (written,) = greedy(model, table, table.vectors[PROMPT][None], tokens=4, known=KNOWN)
    for at, verdict in ((0, "0 of 4 tokens of the text"), (2, "2 of 4 tokens of the text"), (None, "the text")):
        text = written.clone()
        if at is not None:
            text[at] = (text[at] + 1) % KNOWN
        found = Inverted(table.vectors[PROMPT][None], torch.zeros(1), torch.zeros(1, 1))
        lines = Shown(model, table, get_tokenizer("bytes"), text, found, None).lines()
        assert f"    {verdict}, loss" in lines[2]


RUN = RunConfig(model="gpt2", size="tiny", layout=Layout(), global_batch_size=4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    bpe = train_tokenizer.save(train_tokenizer.train("bpe", ["ab ab"], vocabulary=258), folder / "bpe")
    bpe.write_text(bpe.read_text().replace('"Ã":', '"_":'))  # no letter begins with this byte any more
    runs = {"gpt2": RUN, "resnet": replace(RUN, model="resnet"), "lacks": replace(RUN, tokenizer=str(bpe))}
    for name, run in runs.items():
        work = resolve(run)
        engine = native.build(work.context(make_mesh(work.layout, torch.device("cpu"))))
        checkpoint.save(engine, folder / name)
    return folder


def test_the_command_prints_what_it_found_and_writes_all_losses(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "losses.csv"
    words = ["--checkpoint", str(runs / "gpt2"), "--text", "cat", "--steps", "20", "--restarts", "4"]
    assert command.main([*words, "--prompt", "my ", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    losses = list(csv.DictReader(out.open()))
    assert len(losses) == 21 * 4
    last = sorted(float(row["loss"]) for row in losses if row["step"] == "20")
    assert f"      20  {last[0]:>8.4f}  {(last[1] + last[2]) / 2:>8.4f}" in said
    assert "the true prompt, 'my '" in said and "of 4 restarts write the text" in said
    places = said.splitlines()[-3:]
    assert [line.split()[-2] for line in places[:2]] == ["'m'", "'y'"]
    command.main([*words, "--out", str(tmp_path / "curve.png")])
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "true" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "words", "said"),
    [
        ("gpt2", ["--text", ""], "--text is empty"),
        ("gpt2", ["--text", "a", "--prompt", ""], "--prompt is empty"),
        ("gpt2", ["--text", "a" * 10, "--length", "8"], "do not fit into the 16 positions"),
        ("gpt2", ["--text", "a", "--prompt", "a" * 20, "--length", "2"], "do not fit into the 16 positions"),
        ("gpt2", ["--text", "a", "--length", "0"], "at least 1"),
        ("gpt2", ["--text", "a", "--restarts", "0"], "at least 1"),
        ("gpt2", ["--text", "a", "--learning-rate", "0"], "above 0"),
        ("gpt2", ["--text", "a", "--learning-rate", "1e12"], "use a number above 0 up to 10"),
        ("gpt2", ["--text", "a", "--out", "x.gif"], r"ending in \.csv, \.svg"),
        ("resnet", ["--text", "a"], "needs one of texts"),
        ("nowhere", ["--text", "a"], "is not a folder"),
    ],
)
def test_what_cannot_be_is_refused(run: str, words: list[str], said: str, runs: Path) -> None:
    with pytest.raises((ConfigError, DataError, UsageError), match=said):
        command.main(["--checkpoint", str(runs / run), *words])


def test_letters_that_the_tokenizer_lacks_are_refused(runs: Path) -> None:
    with pytest.raises(DataError, match=r"has letters that the tokenizer tokenizer\.json"):
        command.main(["--checkpoint", str(runs / "lacks"), "--text", "é"])
    assert get_tokenizer(str(runs / "bpe" / "tokenizer.json")).encode(["ab"])[0].size
