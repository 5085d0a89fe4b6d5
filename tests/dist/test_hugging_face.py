"""Models of transformers under each kind of layout: parity, bytes, and weights that are continued from."""

from pathlib import Path
from typing import Any

import pytest
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from paralab.benchmarks.case.run import run_case
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.processes.mesh import Mesh, make_mesh
from paralab.processes.rank import Rank
from paralab.records.requested import Requested
from tests import hugging_face
from tests.dist.test_communication import check_run
from tests.dist.workers import WorkerPool


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each model, with weights."""
    where = tmp_path_factory.mktemp("hugging_face")
    for name in ("llama", "qwen3", "gemma3", "olmo2", "gpt_neox", "gpt2", "mixtral", "qwen3_moe", "deepseek_v3"):
        hugging_face.write(name, where / name, weights=True)
    return where


def run_of(model: str, layout: str, folder: Path, **options: object) -> RunConfig:
    # the sequence is longer than a sliding window
    chosen: dict[str, Any] = {"global_batch_size": 16, "seq_len": 24, "steps": 20, **options}
    return RunConfig(model=f"hf:{folder / model}", size="tiny", layout=Layout.parse(layout), **chosen)


# What each model adds: untied and biased, norms of heads and tied, two kinds of layers and of positions, gathered
# projections, one projection for queries, keys and values, and learned positions.
CASES = [
    ("llama", "dp2"),
    ("llama", "dp4/zero3/shard2"),
    ("llama", "dp2.tp2.pp2/zero3/mb2"),
    ("qwen3", "dp2/zero1"),
    ("qwen3", "dp2.tp2/zero3"),
    ("qwen3", "pp2/zbv/mb4"),
    ("gemma3", "dp2/zero3"),
    ("gemma3", "tp2.pp2/mb2"),
    ("olmo2", "tp2"),
    ("gpt_neox", "tp4"),
    ("gpt2", "dp2.pp2/zero2/zbv/mb2"),
    ("qwen3", "cp2.tp2"),
    ("gpt2", "cp2.pp2/mb2/ulysses"),
    ("mixtral", "cp2.pp2/mb2"),
    ("mixtral", "dp2.ep2/zero3"),
    ("qwen3_moe", "dp2.tp2.pp2/zero3/mb2"),
    ("mixtral", "dp2.tp2.ep2"),
    ("qwen3_moe", "pp4/1f1b/mb4"),  # no stage before the second has experts
    pytest.param("deepseek_v3", "dp2.pp2.ep2.tp2/zero3/mb2", marks=pytest.mark.always),
    ("deepseek_v3", "dp4.ep4/zero1"),
    ("deepseek_v3", "cp2.tp2/ulysses"),
    ("deepseek_v3", "cp4"),
    pytest.param("deepseek_v3", "cp2.pp2/mb2", marks=pytest.mark.always),  # keys and values of other widths
]


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_parity(workers: WorkerPool, folder: Path, model: str, layout: str) -> None:
    result = workers.run("tests.dist.cases:parity_result", run_of(model, layout, folder))[0]
    assert result.passed, result


@pytest.mark.parametrize(
    ("model", "layout", "options"),
    [
        ("qwen3", "tp2", {"precision": "bf16"}),
        ("gemma3", "dp2.pp2/zero3/zbv/mb2", {"checkpointing": "full"}),
        ("gpt2", "dp2/zero3", {"checkpointing": "full", "accumulation": 2}),
        ("mixtral", "dp2/zero3", {"checkpointing": "full", "accumulation": 2}),
    ],
)
def test_parity_with_options(
    workers: WorkerPool, folder: Path, model: str, layout: str, options: dict[str, object]
) -> None:
    result = workers.run("tests.dist.cases:parity_result", run_of(model, layout, folder, **options))[0]
    assert result.passed, result


@pytest.mark.parametrize(
    ("model", "layout", "options"),
    [
        ("qwen3", "tp2", {}),
        ("olmo2", "tp2", {"checkpointing": "full"}),
        ("qwen3", "dp2.tp2.pp2/zero3/mb2", {}),
        ("qwen3", "cp2.tp2", {}),
        ("mixtral", "cp2.pp2/mb2", {}),
        ("deepseek_v3", "cp2", {}),
        ("deepseek_v3", "cp2.tp2/ulysses", {}),
        ("qwen3_moe", "dp2.tp2.pp2/zero3/mb2", {}),
    ],
)
def test_what_is_sent_is_what_was_predicted(
    workers: WorkerPool, folder: Path, model: str, layout: str, options: dict[str, object]
) -> None:
    check_run(workers, run_of(model, layout, folder, **options))


def imbalance(rank: Rank, run: RunConfig) -> float | None:
    """Measure a case; return how unevenly tokens went to experts; None on ranks outside of it."""
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return None
    return run_case(work, requested=Requested(), rank=rank, mesh=mesh).expert_imbalance


def test_loads_of_experts_are_of_the_same_step_under_every_layout(workers: WorkerPool, folder: Path) -> None:
    """The first stage of the pipeline has no experts, and takes as many steps as the others."""
    layouts = ("dp1", "dp2.ep2/zero3", "pp4/1f1b/mb4")
    runs = [run_of("qwen3_moe", layout, folder, steps=2, warmup=1, out=None) for layout in layouts]
    seen = [workers.run("tests.dist.test_hugging_face:imbalance", run)[0] for run in runs]
    assert seen[0] > 1 and seen == [seen[0]] * 3


@pytest.mark.parametrize(("model", "layout"), [("gemma3", "dp2.tp2.pp2/zero3/mb2"), ("gpt2", "pp2/mb2")])
def test_training_starts_from_real_weights(workers: WorkerPool, folder: Path, model: str, layout: str) -> None:
    run = run_of(model, layout, folder, learning_rate=0.0)
    run = RunConfig.from_dict({**run.to_dict(), "size": "full"})
    losses = workers.run("tests.dist.test_start_from:loss", run, str(folder / model))
    assert losses[: run.layout.world_size] == pytest.approx([_theirs(run, folder / model)] * run.layout.world_size)


def _theirs(run: RunConfig, folder: Path) -> float:
    """Return the loss of the first batch by the model that transformers loads."""
    alone = RunConfig.from_dict({**run.to_dict(), "layout": "dp1"})
    batch = next(training_batches(resolve(alone), Mesh(Layout(), Rank.from_env().device)))
    logits = AutoModelForCausalLM.from_pretrained(folder).eval()(batch.inputs[0]).logits
    return cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).item()
