"""Text generation: the cache changes nothing, and tokens are drawn as requested."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from paralab import checkpoint
from paralab.axes.initialise import generator_for
from paralab.commands import generate as command
from paralab.data.tokenizer import get_tokenizer
from paralab.engines import native
from paralab.errors import ConfigError, UsageError
from paralab.inference.restore import restore
from paralab.layout import Layout
from paralab.models import SPECS
from paralab.models.generation import Cache, Caching, Choice, generate, keep_likely, next_logits
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.mesh import make_mesh

SEQ_LEN = 12
SIZES = {"gpt2": "3x32x4v257", "llama": "3x32x4/2f48v257t100"}


class Forgetful(nn.Module):
    """A model that keeps nothing of the tokens that it has seen."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)


@pytest.fixture(scope="module", params=[*SIZES, "forgetful"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    name = request.param if request.param in SIZES else "gpt2"
    spec = SPECS[name]
    config = replace(spec.config(SIZES[name]), seq_len=SEQ_LEN)
    model = spec.build(config).double().eval()
    for name, tensor in model.state_dict().items():
        spec.init(config, name, tensor, generator_for(0, name))
        tensor.mul_(5)  # so that attention and the choice of tokens matter
    return model if request.param in SIZES else Forgetful(model)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(257, shape, generator=torch.Generator().manual_seed(1))


def test_logits_with_the_cache_are_those_without(model: nn.Module) -> None:
    text = tokens(2, 12)
    assert isinstance(model, Caching) != isinstance(model, Forgetful)
    cache = Cache(SEQ_LEN)
    with torch.no_grad():
        for start, end in ((0, 3), (3, 4), (4, 9), (9, 12)):  # several at once, also after others
            got = next_logits(model, text[:, start:end], cache)
            torch.testing.assert_close(got, model(text[:, :end])[:, -1], rtol=1e-10, atol=1e-10)
    assert cache.room == 0


def test_greedy_text_is_that_of_the_plain_model_past_the_end_of_its_context(model: nn.Module) -> None:
    prompt = tokens(2, 5)
    got = torch.stack(list(generate(model, prompt, seq_len=SEQ_LEN, tokens=20, choice=Choice(greedy=True))), dim=1)
    context, want = prompt, []
    for _ in range(20):
        if context.shape[1] == SEQ_LEN + 1:  # full: the older half is forgotten
            context = context[:, -SEQ_LEN // 2 :]
        with torch.no_grad():
            want.append(model(context)[:, -1].argmax(-1))
        context = torch.cat([context, want[-1][:, None]], dim=1)
    assert torch.equal(got, torch.stack(want, dim=1))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.49}, [3]),  # reached by the first
        ({"top_p": 0.51}, [1, 3]),
        ({"top_p": 1e-9}, [3]),
        ({"top_k": 2, "top_p": 0.7}, [1, 3]),  # of the two that are left the first has 0.625
        ({"top_k": 2, "top_p": 0.6}, [3]),
    ],
)
def test_unlikely_tokens_are_never_drawn(options: dict, kept: list[int]) -> None:
    logits = torch.tensor([[0.05, 0.30, 0.15, 0.50]], dtype=torch.float64).log() + 3
    assert keep_likely(logits, **options).isfinite()[0].nonzero()[:, 0].tolist() == kept


def test_tokens_are_drawn_in_proportion_at_the_temperature() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    n, temperature = 20_000, 0.5
    logits = probabilities.log().expand(n, -1)
    drawn = Choice(temperature=temperature).draw(logits, torch.Generator().manual_seed(0))
    want = probabilities ** (1 / temperature) / (probabilities ** (1 / temperature)).sum()
    error = (want * (1 - want) / n).sqrt()
    assert ((torch.bincount(drawn, minlength=4) / n - want).abs() < 4 * error).all()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for model in ("gpt2", "llama", "resnet"):
        run = RunConfig(model=model, size="tiny", layout=Layout(), global_batch_size=4)
        work = resolve(replace(run, precision="fp64") if model == "llama" else run)
        engine = native.build(work.context(make_mesh(work.layout, torch.device("cpu"))))
        checkpoint.save(engine, folder / model)
    return folder


def test_a_restored_model_is_the_one_that_was_saved(run_folder: Path) -> None:
    trained = restore(run_folder / "gpt2")
    assert (trained.path.name, trained.step, trained.model.training) == ("step-0", 0, False)
    saved = checkpoint.read_weights(run_folder / "gpt2")
    assert all(torch.equal(p, saved[name]) for name, p in trained.model.named_parameters())
    assert trained.model.head.weight is trained.model.embed.tokens.weight
    assert {p.dtype for p in restore(run_folder / "llama").model.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", SIZES)
def test_the_command_writes_the_text_of_the_model(
    name: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(run_folder / name), "--prompt", "Alice", "--tokens", "9"]
    assert command.main([*words, "--greedy"]) == 0
    trained, tokenizer = restore(run_folder / name), get_tokenizer("bytes")
    prompt = torch.tensor([list(b"Alice")])
    choice = Choice(greedy=True)
    want = [int(x) for x in generate(trained.model, prompt, seq_len=16, tokens=9, choice=choice)]
    assert capsys.readouterr().out == f"Alice{tokenizer.decode(want)}\n"
    texts = []
    for seed in ("1", "1", "2"):
        command.main([*words, "--seed", seed, "--top-k", "50"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", "0"], "above 0"),
        (["--top-p", "1.5"], "up to 1"),
        (["--top-k", "none"], "at least 1"),
        (["--greedy", "--top-k", "3"], "--greedy does not sample"),
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt", "caf\udce9"], "--prompt: 'caf.udce9' has bytes that are no UTF-8"),
    ],
)
def test_bad_options_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        command.main(["--checkpoint", "nowhere", "--prompt", "x", *words])


def test_another_model_is_refused(run_folder: Path) -> None:
    with pytest.raises(ConfigError, match="needs one of texts"):
        command.main(["--checkpoint", str(run_folder / "resnet"), "--prompt", "x"])


@pytest.mark.parametrize("name", ["bytes", "gpt2"])
def test_text_comes_in_whole_letters_as_it_is_drawn(name: str) -> None:
    tokenizer, text = get_tokenizer(name), "naïve 🙂 漢字\n"
    ids = [*tokenizer.encode([text])[0].tolist(), tokenizer.end_of_text, 65]
    found = list(command.pieces(ids, tokenizer))
    assert "".join(found) == text
    assert "🙂" in "".join(found) and all("\ufffd" not in piece for piece in found)
    assert len(found) > 5  # and not all of it in the end
    cut = tokenizer.encode(["🙂"])[0].tolist()[:-1]
    assert "".join(command.pieces(cut, tokenizer)).strip("\ufffd") == ""


def test_the_padding_of_a_vocabulary_is_never_drawn(model: nn.Module) -> None:
    drawn = generate(model, tokens(1, 3), seq_len=SEQ_LEN, tokens=40, choice=Choice(temperature=1e4), known=5)
    assert {int(token) for token in drawn} <= set(range(5))
