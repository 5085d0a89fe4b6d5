"""Save under one layout, continue under another: the losses are those of a run that was never interrupted."""

import math
import resource
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from paralab import checkpoint
from paralab.checkpoint import Saver
from paralab.engines import native
from paralab.engines.native import NativeEngine
from paralab.errors import DataError
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.processes.mesh import make_mesh
from paralab.processes.rank import Rank
from tests.dist.workers import WorkerPool

SHORT = {"size": "2x32x4v257", "seq_len": 16}  # so that the many pairs are quick
SAVED_AT, MORE = 3, 4
LAYOUTS = {
    "single": "dp1",
    "ddp": "dp2",
    "zero1": "dp2/zero1",
    "zero3": "dp4/zero3",
    "hsdp": "dp4/zero3/shard2",
    "tensor": "tp2",
    "context": "dp2.cp2/zero1",
    "pipeline": "pp2/1f1b/mb2",
    "2d": "tp2.pp2/1f1b/mb2",
    "3d": "dp2.tp2.pp2/1f1b/mb2",
}
# What these leave out: several stages a rank, both ends on one rank, ZeRO beside other axes, uneven shards.
RELAY = (
    "dp8/zero3",
    "pp2/zbv/mb4",
    "dp2.tp2/zero3/sp",
    "dp4/zero1/shard2",
    "dp4.tp2/zero3/shard2",
    "dp2.pp2/zero1/zbv/mb2",
    "dp2.cp2.tp2/zero3/ulysses",
    "dp2.pp2/zero2/gpipe/mb2/first1",
    "dp2/zero1/offload-optimizer",
    "dp4/zero3/offload-parameters",
    "dp1",
)
RELAY_OF_EIGHT_STAGES = ("dp2/zero1", "pp2/interleavedx4/mb4", "pp4/dualpipev/mb8", "dp1")


def config(layout: str, **options: object) -> RunConfig:
    model = {} if "model" in options else {"model": "gpt2", **SHORT}
    chosen: dict[str, Any] = {**model, "global_batch_size": 16, "eps": 1e-5, "steps": 20, **options}
    return RunConfig(layout=Layout.parse(layout), **chosen)


def engine_and_saver(rank: Rank, run: RunConfig, folder: str) -> tuple[NativeEngine | None, Saver]:
    """Build what a run needs. Ranks outside its layout have no engine, but take part in making process groups."""
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    saver = Saver(folder, mesh=mesh, keep_last=3)
    return native.build(work.context(mesh)) if rank.rank < work.layout.world_size else None, saver


def train(engine: NativeEngine, steps: int) -> list[float]:
    context = engine.context
    batches = training_batches(resolve(context.run), context.mesh, start_step=engine.steps_done)
    return [engine.step(batch).loss.item() for batch in islice(batches, steps)]


# In the workers


def save_and_go_on(rank: Rank, run: RunConfig, folder: str, steps: int) -> list[float] | None:
    engine, saver = engine_and_saver(rank, run, folder)
    if engine is None:
        return None
    train(engine, SAVED_AT)
    saver.save(engine)
    saver.join()
    return train(engine, steps)


def continue_each(rank: Rank, run: RunConfig, folders: list[str]) -> list[list[float]] | None:
    losses = []
    for folder in folders:
        engine, _ = engine_and_saver(rank, run, folder)
        if engine is None:
            return None
        assert checkpoint.load(engine, folder) == SAVED_AT
        losses.append(train(engine, MORE))
    return losses


def relay(rank: Rank, runs: list[RunConfig], folder: str, steps: int) -> list[float]:
    """Hand a run from layout to layout; return all losses."""
    losses = []
    for run in runs:
        engine, saver = engine_and_saver(rank, run, folder)
        if engine is not None:
            checkpoint.resume(engine, folder, say=pytest.fail)
            losses += train(engine, steps)
            saver.save(engine)
            saver.join()
        dist.barrier()
    return losses


def moved(rank: Rank, runs: list[RunConfig], folder: str) -> tuple[list[str], list[float]]:
    """Train and save under the first of two runs, go on under the second; return what that says, and its losses."""
    said: list[str] = []
    losses: list[float] = []
    for run in runs:
        engine, saver = engine_and_saver(rank, run, folder)
        if engine is not None:
            checkpoint.resume(engine, folder, say=said.append)
            losses = train(engine, SAVED_AT)
            saver.save(engine)
            saver.join()
        dist.barrier()
    return said, losses


def train_and_save_every_step(rank: Rank, run: RunConfig, folder: str, steps: int) -> list[float] | None:
    engine, saver = engine_and_saver(rank, run, folder)
    if engine is None:
        return None
    losses = []
    with saver:
        for _ in range(steps):
            losses += train(engine, 1)
            saver.save(engine)
    return losses


def save_on_a_full_disk(rank: Rank, run: RunConfig, folder: str) -> str:
    """Save while only rank 1 cannot write; return what this rank is told."""
    engine, saver = engine_and_saver(rank, run, folder)
    if engine is None:
        return ""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if rank.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        saver.save(engine)
        saver.join()
    except DataError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return "saved"


def resume_and_tell(rank: Rank, run: RunConfig, folder: str) -> tuple[int, list[str]] | None:
    engine, _ = engine_and_saver(rank, run, folder)
    if engine is None:
        return None
    said: list[str] = []
    return checkpoint.resume(engine, folder, say=said.append), said


# Here


def largest_difference(got: list[float], want: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(got, want, strict=True))


@pytest.fixture(scope="module")
def saved(workers: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A checkpoint of each layout, and the losses of a single process that went on."""
    root = tmp_path_factory.mktemp("saved")
    save = "tests.dist.test_checkpoint:save_and_go_on"
    losses = [
        workers.run(save, config(layout), str(root / name), MORE if name == "single" else 0)[0]
        for name, layout in LAYOUTS.items()
    ]
    return root, losses[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_continues_every_layout(name: str, workers: WorkerPool, saved: tuple[Path, list[float]]) -> None:
    root, uninterrupted = saved
    folders = [str(root / source) for source in LAYOUTS]
    continued = workers.run("tests.dist.test_checkpoint:continue_each", config(LAYOUTS[name]), folders)[0]
    differences = dict(zip(LAYOUTS, (largest_difference(losses, uninterrupted) for losses in continued), strict=True))
    assert max(differences.values()) < 1e-5, differences


def test_a_checkpoint_does_not_show_who_wrote_it(saved: tuple[Path, list[float]]) -> None:
    root, _ = saved
    single = checkpoint.read_weights(root / "single")
    assert "head.weight" not in single  # tied: stored once
    for name in LAYOUTS:
        weights = checkpoint.read_weights(root / name)
        assert weights.keys() == single.keys()
        for key, tensor in weights.items():
            torch.testing.assert_close(tensor, single[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "layouts"),
    [
        ({"size": "4x32x4v257", "seq_len": 16}, RELAY),
        (
            {"model": "resnet", "size": "tiny", "norm": "syncbatch", "precision": "fp64"},
            ("dp2", "tp2", "dp4/zero3", "pp2/gpipe", "dp1"),
        ),
        (
            {"model": "resnet", "size": "tiny", "norm": "group", "precision": "fp64", "optimizer": "sgd"},
            ("dp2/zero1", "dp2.tp2", "dp1"),
        ),
    ],
    ids=["gpt2", "resnet-syncbatch", "resnet-sgd"],
)
def test_a_run_handed_from_layout_to_layout(
    options: dict, layouts: tuple[str, ...], workers: WorkerPool, tmp_path: Path
) -> None:
    hand_over(workers, options, layouts, tmp_path)


def test_a_run_handed_between_many_stages(workers: WorkerPool, tmp_path: Path) -> None:
    hand_over(workers, {"size": "tiny"}, RELAY_OF_EIGHT_STAGES, tmp_path)


def hand_over(workers: WorkerPool, options: dict, layouts: tuple[str, ...], tmp_path: Path) -> None:
    """Fail unless a run handed from layout to layout computes what one process does, values at its end included."""
    steps = 1  # what a layout made of moments shows in the next one's loss, and in the last one's weights
    options = {**options, "precision": "fp64"}  # so that nothing but rounding hides
    runs = [config(layout, **options) for layout in layouts]
    losses = workers.run("tests.dist.test_checkpoint:relay", runs, str(tmp_path / "relay"), steps)[0]
    alone = workers.run(
        "tests.dist.test_checkpoint:relay", [config("dp1", **options)], str(tmp_path / "alone"), steps * len(runs)
    )[0]
    assert largest_difference(losses, alone) < 1e-10
    got, want = (checkpoint.read_weights(tmp_path / name) for name in ("relay", "alone"))
    assert got.keys() == want.keys()
    for name, tensor in got.items():  # running statistics among them
        torch.testing.assert_close(tensor, want[name], atol=1e-9, rtol=1e-9, msg=f"{name}: {{}}".format)


@pytest.mark.parametrize("layout", ["dp4/zero3", "dp2.tp2.pp2/1f1b/mb2"])
def test_saving_in_the_background_of_training(layout: str, workers: WorkerPool, tmp_path: Path) -> None:
    run, steps = config(layout), 6
    losses = workers.run("tests.dist.test_checkpoint:train_and_save_every_step", run, str(tmp_path), steps)[0]
    assert all(math.isfinite(loss) for loss in losses)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-4", "step-5", "step-6"]
    # The checkpoint of step 4 was written while steps 5 and 6 ran, and is of step 4.
    undisturbed = workers.run("tests.dist.test_checkpoint:train_and_save_every_step", run, str(tmp_path / "b"), 4)[0]
    assert losses[:4] == undisturbed
    weights, alone = (checkpoint.read_weights(path / "step-4") for path in (tmp_path, tmp_path / "b"))
    assert all(torch.equal(weights[name], alone[name]) for name in alone)


def test_all_ranks_learn_that_one_could_not_write(workers: WorkerPool, tmp_path: Path) -> None:
    run = config("dp4/zero3")
    told = workers.run("tests.dist.test_checkpoint:save_on_a_full_disk", run, str(tmp_path))[:4]
    assert len(set(told)) == 1
    assert told[0].startswith("checkpoint step-0 was not saved, there is none yet: rank 1: OSError: [Errno 27]")
    assert list(tmp_path.iterdir()) == []


def test_all_ranks_fall_back_together(workers: WorkerPool, tmp_path: Path) -> None:
    run = config("dp4/zero3")
    workers.run("tests.dist.test_checkpoint:train_and_save_every_step", run, str(tmp_path), 2)
    shard = sorted((tmp_path / "step-2").glob("*.safetensors"))[2]
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    for step, said in workers.run("tests.dist.test_checkpoint:resume_and_tell", run, str(tmp_path))[:4]:
        assert step == 1
        assert len(said) == 1
        assert said[0].startswith(str(shard))


@pytest.mark.parametrize(("layouts", "rounded"), [(("dp4/zero3", "dp4/zero3"), False), (("dp4/zero3", "tp2"), True)])
def test_moments_in_eight_bits_move_and_it_is_said(
    workers: WorkerPool, tmp_path: Path, layouts: tuple[str, str], rounded: bool
) -> None:
    options = {"size": "2x64x4v257", "seq_len": 16, "model": "gpt2", "optimizer": "adamw8bit"}
    runs = [config(layout, **options) for layout in layouts]
    said, losses = workers.run("tests.dist.test_checkpoint:moved", runs, str(tmp_path / "moved"))[0]
    assert [("were rounded once more" in text) for text in said] == [True] * rounded
    never_stopped = workers.run(
        "tests.dist.test_checkpoint:save_and_go_on", runs[0], str(tmp_path / "whole"), SAVED_AT
    )[0]
    assert losses == pytest.approx(never_stopped, rel=1e-3 if rounded else 0, abs=0)
