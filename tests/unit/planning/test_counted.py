"""Models that are no transformers of texts: what is counted on their modules, and the line that trains them."""

import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from paralab import cli
from paralab.axes.case import CountedCase
from paralab.benchmarks.planner import images as planner_images
from paralab.benchmarks.run import CaseConfig
from paralab.errors import ConfigError
from paralab.models import SPECS
from paralab.options.flags import resolve as read_config
from paralab.planning import checked
from paralab.planning.counted import count
from paralab.planning.goals import Goal
from paralab.planning.predict import model_flops
from paralab.planning.resolve import resolve
from paralab.planning.search import search
from paralab.planning.shapes import find
from paralab.planning.solving import solve
from tests.unit.commands.test_check_model import MODEL

GPUS = {"n_gpus": 8, "gpu": "A100-SXM4-80GB"}


@pytest.mark.parametrize(
    ("name", "size"), [("resnet", "20"), ("resnet", "50"), ("diffusion", "dit-mnist"), ("diffusion", "points")]
)
def test_what_is_counted_is_what_the_formula_of_the_model_says(name: str, size: str) -> None:
    """Every FLOP and every weight, exactly."""
    spec = SPECS[name]
    counted = count(spec, spec.config(size))
    parts = (counted.first, *counted.blocks, counted.last)
    assert 3 * sum(part.flops for part in parts) == spec.flops_of(spec.config(size)).per_sample
    assert sum(part.weights for part in parts) == sum(p.numel() for p in spec.on_meta(spec.config(size)).parameters())
    assert all(0 < part.divided_flops <= part.flops and part.reductions >= 1 for part in counted.blocks)


@pytest.mark.parametrize(
    ("name", "size"), [("resnet", "tiny"), ("diffusion", "tiny-dit"), ("diffusion", "tiny-points")]
)
def test_what_is_kept_is_what_a_real_run_keeps(name: str, size: str) -> None:
    spec, kept = SPECS[name], dict[int, int]()
    model = spec.built(spec.config(size), seed=0)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.itemsize  # a view keeps all of it
        return tensor

    inputs, targets = spec.example(spec.config(size), 8)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(*inputs, targets=targets)  # what was kept lives as long as it does
    real = sum(numel for storage, numel in kept.items() if storage not in weights) / 8
    counted = count(spec, spec.config(size))
    assert sum(part.kept for part in (counted.first, *counted.blocks, counted.last)) == pytest.approx(real, rel=0.05)
    assert loss.requires_grad


@pytest.mark.parametrize(("name", "size"), [("resnet", "tiny"), ("diffusion", "tiny-dit")])
def test_what_is_kept_in_16_bits_is_what_a_real_run_keeps(name: str, size: str) -> None:
    """By bytes: norms and modulation stay in fp32. A further sample adds them, and no cast of a weight."""
    spec = SPECS[name]
    model = spec.built(spec.config(size), seed=0)

    def kept_bytes(samples: int) -> int:
        kept = dict[int, int]()

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        inputs, targets = spec.example(spec.config(size), samples)
        with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
            loss = model(*inputs, targets=targets)
        assert loss.requires_grad
        return sum(kept.values())

    counted = count(spec, spec.config(size)).kept_in_16
    assert counted is not None
    elements = counted.first + counted.blocks + counted.last
    assert 2 * elements == pytest.approx((kept_bytes(16) - kept_bytes(8)) / 8, rel=0.05)


@pytest.mark.parametrize(("name", "size", "share"), [("resnet", "20", 0.5), ("diffusion", "dit-mnist", 0.6)])
def test_of_what_is_kept_tensor_ranks_divide_what_lies_between_their_layers(name: str, size: str, share: float) -> None:
    """Of ResNet about half; of a DiT queries, keys, values and the MLP, and not what norms and modulation take."""
    counted = count(SPECS[name], SPECS[name].config(size))
    divided = sum(block.divided_kept for block in counted.blocks) / sum(block.kept for block in counted.blocks)
    assert divided == pytest.approx(share, abs=0.1)


def test_tensor_ranks_divide_less_of_a_dit_in_16_bits() -> None:
    """What norms and modulation take stays whole, and in fp32: of a dry run of tp4, 104 MiB of activations."""
    counted = count(SPECS["diffusion"], SPECS["diffusion"].config("dit-mnist"))
    in_32 = sum(block.divided_kept for block in counted.blocks) / sum(block.kept for block in counted.blocks)
    of = counted.kept_in_16
    assert of is not None and of.divided / of.blocks < 0.85 * in_32
    elements = 64 * (of.first + of.blocks - 3 / 4 * of.divided + of.last)
    assert 2 * elements / 2**20 == pytest.approx(104, rel=0.07)  # the rest is cast weights and what is at work


def test_ranks_of_a_pipeline_hold_what_their_own_blocks_have() -> None:
    """The first blocks of a ResNet keep most, the last ones have most weights, and all take as long."""
    counted = count(SPECS["resnet"], SPECS["resnet"].config("50"))
    held = counted.held_by((8, 8), 2, 1, "1f1b")
    assert held["weights_first"] + held["weights_last"] == pytest.approx(16)
    assert held["weights_first"] < 4 < 12 < held["weights_last"] and held["kept_first"] > 11
    assert 6 < held["layers_first"] < 10
    folded = counted.held_by((4, 4, 4, 4), 2, 2, "zbv")
    assert folded["weights_first"] == pytest.approx(
        sum(block.weights for block in (*counted.blocks[:4], *counted.blocks[12:])) / counted.mean("weights")
    )


def test_tensor_ranks_divide_all_products_of_a_dit_but_its_modulation() -> None:
    """Attention among them: what is left is a product of the condition of a sample, six times as wide."""
    config = SPECS["diffusion"].config("dit-mnist")
    whole = {block.flops - block.divided_flops for block in count(SPECS["diffusion"], config).blocks}
    assert whole == {2 * 6 * config.hidden**2}


def test_images_cost_what_is_counted() -> None:
    """Twice the batch on one device takes nearly twice as long and keeps twice as much; tensor ranks keep less."""
    _, raw = find("resnet", "50")
    one = {"tp": 1, "pp": 1, "zero": 0, "recompute": "none", "n_gpus": 1, "gpu": "A100-SXM4-80GB", "precision": "fp32"}
    small, large = (search(raw | one | {"global_batch_size": n, "micro_batch_size": n}) for n in (256, 512))
    spec = SPECS["resnet"]
    case, counted = small.settled.case, count(spec, spec.config("50"))
    assert isinstance(case, CountedCase)
    assert (case.first_kept, case.last_kept) == (counted.first.kept, counted.last.kept)
    assert model_flops(small.settled.case) == 256 * spec.flops_of(spec.config("50")).per_sample
    assert 1.8 < large.prediction.step_time_s[0] / small.prediction.step_time_s[0] <= 2
    assert large.memory_gib["activations"][0] == pytest.approx(2 * small.memory_gib["activations"][0])
    assert sum(gib[0] for gib in small.memory_gib.values()) == pytest.approx(small.prediction.memory_gib[0])
    assert sum(cause[0] for cause in small.causes_s.values()) == pytest.approx(small.prediction.step_time_s[0])


def test_published_throughputs_of_resnets_are_predicted_as_well_as_is_said() -> None:
    """No constant is fitted on them. Otherwise: python -m paralab.benchmarks.planner.errors --write."""
    found, limits = planner_images.errors()
    (said,) = checked.errors("images").values()
    assert found.mean_percent == pytest.approx(said.mean_percent, abs=0.2) and found.mean_percent < 20
    assert limits == pytest.approx(checked.step_time_range("images"), abs=0.01)


# --- the line that is printed


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "net.py").write_text(MODEL)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        "--model gpt2 --size 355m --n-gpus 16 --sequence-length 512",
        "--model llama --size 1b --n-gpus 8 --set pp=4",
        "--model llama --size nano --n-gpus 4 --set tp=2 --set sequence_parallel=true --precision fp16",
        "--model resnet --size 50 --n-gpus 8 --set tp=2",
        "--model diffusion --size dit-mnist --n-gpus 4 --set pp=2",
        "--model diffusion --n-gpus 4",
        "--model net.py --n-gpus 2 --global-batch-size 8",
    ],
)
def test_the_printed_line_is_one_that_can_be_typed(words: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The parser of `paralab run` reads it, and everything that is refused before processes start accepts it."""
    assert cli.main(["plan", *words.split()]) == 0
    said = capsys.readouterr().out.replace("\\\n", "").splitlines()  # as a shell goes on after a backslash
    (line,) = [line for line in said if line.startswith("  paralab run")]
    work = resolve(read_config(shlex.split(line)[2:], config=CaseConfig))
    asked = dict(zip(words.split()[::2], words.split()[1::2], strict=True))
    assert work.layout.world_size == int(asked["--n-gpus"])
    batch, length = work.division.global_batch_size, getattr(work.model_config, "seq_len", None)
    assert batch == int(asked.get("--global-batch-size", batch))
    assert length == int(asked["--sequence-length"]) if "--sequence-length" in asked else True


def test_a_model_that_another_width_makes_another_one_has_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("plan --model gpt2 --size 124m --hidden 1536 --n-gpus 8".split()) == 0
    assert "paralab run" not in capsys.readouterr().out


def test_tokens_a_weight_are_refused_for_images() -> None:
    _, raw = find("resnet", "20")
    with pytest.raises(ConfigError, match="these are images"):
        solve(Goal(tokens="20x"), raw | GPUS, None, "")


def test_a_page_of_a_model_of_images(tmp_path: Path) -> None:
    words = "plan --model diffusion --size dit-mnist --n-gpus 4 --tokens 1e8 --report"
    assert cli.main([*words.split(), str(tmp_path / "p.html")]) == 0
    page = (tmp_path / "p.html").read_text()
    assert "images/s" in page and "3 x forward, counted" in page and "published trainings of ResNets" in page
