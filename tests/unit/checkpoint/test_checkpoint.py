"""Checkpoints of one process: what is saved comes back, what is damaged is refused, what is killed leaves the last."""

import errno
import json
import os
import pickle
import re
import resource
import shutil
import threading
from collections.abc import Callable
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from paralab import checkpoint
from paralab.checkpoint import Saver, folder, random
from paralab.checkpoint.storage import Writer
from paralab.engines import native
from paralab.engines.native import NativeEngine
from paralab.engines.state import Shapes, _empty_state
from paralab.errors import ConfigError, DataError, NewerFormatError
from paralab.inference.restore import restore
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.processes.mesh import make_mesh

# One block: what is tested here does not depend on more.
ONE_BLOCK = {"size": "1x32x4v257", "seq_len": 16}


def build(**options: Any) -> NativeEngine:
    model: dict[str, Any] = {} if "model" in options else {"model": "gpt2", **ONE_BLOCK}
    run = RunConfig(**{**model, "layout": Layout(), "global_batch_size": 4, **options})
    work = resolve(run)
    return native.build(work.context(make_mesh(work.layout, torch.device("cpu"))))


def train(engine: NativeEngine, steps: int) -> list[float]:
    context = engine.context
    work = resolve(context.run)
    batches = training_batches(work, context.mesh, start_step=engine.steps_done)
    return [engine.step(batch).loss.item() for batch in islice(batches, steps)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at steps 1 and 2. Tests copy it."""
    run_folder = tmp_path_factory.mktemp("run")
    engine = build()
    for _ in range(2):
        train(engine, 1)
        checkpoint.save(engine, run_folder)
    return run_folder


@pytest.fixture
def run_folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "run")


def saver_for(engine: NativeEngine, folder: Path, **options: Any) -> Saver:
    return Saver(folder, mesh=engine.context.mesh, **options)


def files_of(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"precision": "fp64"},
        {"precision": "fp16"},
        {"model": "resnet", "size": "tiny"},
        {"model": "diffusion", "size": None},
    ],
    ids=str,
)
def test_continues_bit_by_bit(options: dict, tmp_path: Path) -> None:
    engine = build(**options)
    train(engine, 2)
    engine.loss_scale.good_steps = 7
    torch.manual_seed(5)
    checkpoint.save(engine, tmp_path)
    expected = train(engine, 3), torch.rand(2)
    other = build(**options)
    train(other, 1)  # what it remembers must go
    assert checkpoint.load(other, tmp_path) == other.steps_done == 2
    assert (other.loss_scale.value, other.loss_scale.good_steps) == (2.0**16 if "fp16" in options.values() else 1, 7)
    losses, random = train(other, 3), torch.rand(2)
    assert losses == expected[0]
    assert torch.equal(random, expected[1])
    ours, theirs = ([p.state_dict() for p in e.parts] for e in (other, engine))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) for name in a)


def test_the_loss_scale_of_another_precision_is_not_taken(tmp_path: Path) -> None:
    checkpoint.save(build(precision="fp16"), tmp_path)
    engine = build()
    checkpoint.load(engine, tmp_path)
    assert engine.loss_scale.value == 1


def test_what_the_optimizer_remembers_goes_where_the_checkpoint_has_nothing_of_it(tmp_path: Path) -> None:
    checkpoint.save(build(), tmp_path)
    engine = build()
    train(engine, 1)
    checkpoint.load(engine, tmp_path)
    assert not engine.optimizer.state


def test_a_state_of_a_shape_of_its_own_keeps_its_dtype() -> None:
    piece = build().pieces[0]
    assert _empty_state(piece, (), torch.int64).dtype == torch.int64, "a count that fp32 would not hold"


def test_ranks_beyond_those_that_saved_share_their_random_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 5 takes that of rank 1 where four ranks saved, and not that of the first rank, as every other would."""
    context: Any = SimpleNamespace(device=torch.device("cpu"), mesh=SimpleNamespace(world=object()))
    saved: Shapes = {f"random.cpu.{rank}": ((5056,), torch.uint8) for rank in range(4)}
    names: list[str] = []
    for rank in (0, 3, 5):
        monkeypatch.setattr(random.dist, "get_rank", lambda world, rank=rank: rank)
        names += random.new_random_chunks(context, saved)
    assert names == ["random.cpu.0", "random.cpu.3", "random.cpu.1"]


def test_saving_holds_the_moment_it_was_asked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = threading.Event()
    prepare = Writer.prepare_global_plan

    def prepare_late(writer: Writer, plans: list) -> list:
        assert trained.wait(timeout=30)
        return prepare(writer, plans)

    monkeypatch.setattr(Writer, "prepare_global_plan", prepare_late)
    engine = build()
    train(engine, 1)
    before = {name: p.detach().clone() for name, p in engine.parameters()}
    with saver_for(engine, tmp_path) as saver:
        saver.save(engine)
        train(engine, 1)
        assert not list(tmp_path.iterdir())
        trained.set()
    weights = checkpoint.read_weights(tmp_path / "step-1")
    assert all(torch.equal(weights[name], p) for name, p in before.items())


# Damage


@pytest.mark.parametrize("name", ["facts.json", "manifest.json", "shard-00001-model-00001-of-00001.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_named_and_the_one_before_is_taken(name: str, damage: str, run_folder: Path) -> None:
    file = run_folder / "step-2" / name
    assert files_of(file.parent) == files_of(run_folder / "step-1")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-len(content) // 3] ^= 1
    file.write_bytes(content[: len(content) // 2] if damage == "truncate" else content)
    if damage == "remove":
        file.unlink()
    engine = build()
    with pytest.raises(DataError, match=r"step-2.*use another one"):
        checkpoint.load(engine, run_folder / "step-2")
    said: list[str] = []
    assert checkpoint.resume(engine, run_folder, say=said.append) == 1
    (line,) = said
    if name != "manifest.json":  # a damaged manifest may blame any file
        assert name in line
    assert line.endswith("taking step-1")


def test_tensors_that_are_missing_with_their_file_are_no_other_model(run_folder: Path) -> None:
    (run_folder / "step-2" / "shard-00001-model-00001-of-00001.safetensors").unlink()
    checkpoint.check_same_work(run_folder, build().context)  # left to `resume`, which takes the one before


def test_files_that_a_desktop_puts_there_are_no_damage(run_folder: Path) -> None:
    (run_folder / "step-2" / ".DS_Store").write_text("")
    folder.verify(run_folder / "step-2")
    (run_folder / "step-2" / "more.safetensors").write_text("")
    with pytest.raises(DataError, match=r"more\.safetensors is not in the manifest"):
        folder.verify(run_folder / "step-2")


def test_files_and_links_in_the_place_of_a_checkpoint_are_replaced(run_folder: Path) -> None:
    elsewhere = run_folder / "step-2"
    for step, target in ((7, "step-7"), (8, elsewhere.name)):  # a link to itself, and one to another checkpoint
        (run_folder / f"step-{step}").symlink_to(target)
    for name in ("step-9", "step-9.old", "step-3.tmp"):
        (run_folder / name).write_text("")
    folder.remove_unfinished(run_folder)
    for step in (7, 8, 9):
        (run_folder / f"step-{step}.tmp").mkdir()
        folder.publish(run_folder / f"step-{step}.tmp")
    assert sorted(path.name for path in run_folder.glob("step-*")) == [f"step-{step}" for step in (1, 2, 7, 8, 9)]
    assert not any(path.is_symlink() for path in run_folder.iterdir())
    folder.verify(elsewhere)


def test_every_bit_of_a_small_file_counts(run_folder: Path) -> None:
    file = run_folder / "step-2" / "facts.json"
    content = file.read_bytes()
    for i in range(0, 8 * len(content), 37):
        changed = bytearray(content)
        changed[i // 8] ^= 1 << i % 8
        file.write_bytes(changed)
        with pytest.raises(DataError, match=r"facts\.json"):
            folder.verify(file.parent)


def test_a_run_without_a_readable_checkpoint_does_not_start_over(run_folder: Path) -> None:
    for step in (1, 2):
        (run_folder / f"step-{step}" / "manifest.json").unlink()
    said: list[str] = []
    with pytest.raises(DataError, match="none of the 2 checkpoints"):
        checkpoint.resume(build(), run_folder, say=said.append)
    assert len(said) == 2


def test_an_empty_folder_starts_from_zero_and_an_explicit_path_does_not(tmp_path: Path) -> None:
    said: list[str] = []
    assert checkpoint.resume(build(), tmp_path / "new", say=said.append) == 0
    assert said == []
    with pytest.raises(DataError, match="has no checkpoint"):
        checkpoint.load(build(), tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        checkpoint.load(build(), tmp_path / "step-9")


def test_a_checkpoint_is_known_by_its_files(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder.rename(tmp_path / "step-7")  # of a run that is named like a checkpoint
    (tmp_path / "step-7" / "step-1").rename(tmp_path / "copy")
    assert restore(tmp_path / "copy").step == 1
    assert restore(tmp_path / "step-7").step == 2
    (tmp_path / "link").symlink_to(tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "link")
    assert [restore(path).step for path in (Path(), tmp_path / "link")] == [1, 1]
    assert checkpoint.load(build(), tmp_path / "link") == 1


@pytest.mark.parametrize(
    "content", [None, b"../elsewhere", b"/etc", b"", b"step-7", b"step-2\0", b"\xff\xfe"], ids=repr
)
def test_latest_that_leads_nowhere(content: bytes | None, run_folder: Path) -> None:
    shutil.copytree(run_folder / "step-1", run_folder.parent / "elsewhere")
    pointer = run_folder / "latest"
    pointer.unlink() if content is None else pointer.write_bytes(
        content.encode() if isinstance(content, str) else content
    )
    said: list[str] = []
    assert checkpoint.resume(build(), run_folder, say=said.append) == 2
    assert len(said) == 1
    assert said[0].endswith("taking step-2")


def test_options_that_change_what_is_computed_are_said(run_folder: Path) -> None:
    said: list[str] = []
    engine = build(clip_norm=None, betas=(0.9, 0.99), precision="bf16", accumulation=2, steps=60, timeout_s=9.0)
    checkpoint.resume(engine, run_folder, say=said.append)
    (line,) = said
    assert line == (
        f"{run_folder / 'step-2'} was saved with other options: --accumulation 1, now 2; --steps 20, now 60; "
        "--betas 0.9,0.95, now 0.9,0.99; --clip-norm 1.0, now none; --precision fp32, now bf16"
    )


def test_going_back_to_an_older_checkpoint_leaves_the_newer_ones_behind(run_folder: Path) -> None:
    engine = build()
    checkpoint.load(engine, run_folder / "step-1")
    os.rename(run_folder / "step-2", run_folder / "step-9")  # the branch that was given up
    train(engine, 1)
    checkpoint.save(engine, run_folder)
    assert checkpoint.resume(build(), run_folder, say=pytest.fail) == 2


# Killed


def killed_after(calls: int, work: Callable[[], None]) -> bool:
    """Run in a child that dies at its n-th change of the folder. Return whether it lived to the end."""
    child = os.fork()
    if child == 0:
        try:
            _die_after(calls, work)
        finally:  # whatever happens, the child must not go on with the tests
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _die_after(calls: int, work: Callable[[], None]) -> None:
    count = 0
    for module, name in [(os, "rename"), (os, "replace"), (os, "mkdir"), (os, "unlink")]:
        original = getattr(module, name)

        def counted(*args: object, original: Callable = original, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count > calls:
                os._exit(9)
            return original(*args, **kwargs)

        setattr(module, name, counted)
    work()
    os._exit(0)


def test_killed_at_any_moment_of_saving_leaves_a_good_checkpoint(run_folder: Path, tmp_path: Path) -> None:
    for step in (2, 3):  # 2 is overwritten, 3 is new
        engine = build()
        checkpoint.load(engine, run_folder / "step-1")
        train(engine, step - 1)
        weights = dict(engine.parameters())
        for calls in range(100):
            trial = shutil.copytree(run_folder, tmp_path / f"{step}-{calls}")
            lived = killed_after(calls, lambda: checkpoint.save(engine, trial, keep_last=2))  # noqa: B023
            for path in folder.checkpoints(trial):
                folder.verify(path)
            again = build()
            resumed = checkpoint.resume(again, trial, say=lambda text: None)
            assert resumed == step if lived else resumed in (2, step)
            if resumed == step:
                assert all(torch.equal(p, weights[name]) for name, p in again.parameters())
            checkpoint.save(again, trial)
            assert sorted(path.name for path in trial.iterdir() if path.suffix in (".tmp", ".old")) == []
            assert checkpoint.resume(build(), trial, say=pytest.fail) == resumed
            if lived:
                break
        assert calls > 3


# Full disks


def test_free_space_is_checked_before_anything_is_written(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    engine = build()
    checkpoint.load(engine, run_folder)
    train(engine, 1)
    with pytest.raises(DataError, match=r"step-3 was not saved, the last good one is step-2: .* [\d.]+ MiB, 1 MiB are"):
        checkpoint.save(engine, run_folder)
    assert files_of(run_folder) == ["latest", "step-1", "step-2"]


def test_a_disk_that_fills_up_while_saving(run_folder: Path) -> None:
    engine = build()
    checkpoint.load(engine, run_folder)
    train(engine, 1)
    saver = saver_for(engine, run_folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        saver.save(engine)
        with pytest.raises(DataError, match=f"step-3 was not saved.*{os.strerror(errno.EFBIG)}: make room there"):
            saver.join()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_of(run_folder) == ["latest", "step-1", "step-2"]
    saver.save(engine)
    saver.join()
    assert checkpoint.latest(run_folder) == run_folder / "step-3"


def test_a_failed_save_is_raised_at_the_next_one_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    saver = saver_for(engine, tmp_path)
    saver.save(engine)
    with pytest.raises(DataError, match="there is none yet"):
        saver.save(engine)
    with pytest.raises(DataError), saver_for(engine, tmp_path) as saver:
        saver.save(engine)
    with pytest.raises(KeyError), saver_for(engine, tmp_path) as saver:  # what ended the run comes first
        saver.save(engine)
        raise KeyError


# What is kept


def test_the_last_ones_and_the_best_one_are_kept(tmp_path: Path) -> None:
    engine = build()
    with saver_for(engine, tmp_path, keep_last=2) as saver:
        for step, metric in enumerate([5.0, 3.0, None, 4.0, float("nan"), 3.5], start=1):
            engine.steps_done = step
            saver.save(engine, metric=metric)
    assert files_of(tmp_path) == ["latest", "step-2", "step-5", "step-6"]
    assert checkpoint.best(tmp_path) == tmp_path / "step-2"
    assert checkpoint.latest(tmp_path) == tmp_path / "step-6"
    with saver_for(engine, tmp_path, keep_last=1, keep_best=False) as saver:
        engine.steps_done = 7
        saver.save(engine)
    assert files_of(tmp_path) == ["latest", "step-7"]
    with pytest.raises(ConfigError, match="keep_last=0"):
        saver_for(engine, tmp_path, keep_last=0)


# Strangers


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def test_no_file_can_run_code(run_folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    pickled = pickle.dumps(Payload(marker))
    pickle.loads(pickled)
    assert marker.exists()
    marker.rmdir()
    torch.save({"x": Payload(marker)}, tmp_path / "zip")
    original = run_folder / "step-2"
    names = [*files_of(original), ".metadata", "__0_0.distcp", "x.pt", "x.safetensors"]
    for name in names:
        for payload in (pickled, (tmp_path / "zip").read_bytes()):
            for honest_manifest in (False, True):
                trial = shutil.copytree(original, tmp_path / "trial" / "step-2")
                (trial / name).write_bytes(payload)
                if honest_manifest and name != "manifest.json":
                    digests = {file: folder.Digest.of(trial / file) for file in files_of(trial)}
                    del digests["manifest.json"]
                    folder.write_manifest(trial, digests)
                try:
                    checkpoint.load(build(), trial)
                except DataError:
                    refused = True
                else:
                    refused = False
                assert refused or (honest_manifest and not name.endswith((".json", ".safetensors")))
                with pytest.raises(DataError):
                    (trial.parent / "latest").write_bytes(payload)
                    shutil.rmtree(trial)
                    checkpoint.load(build(), trial.parent)
                assert not marker.exists(), name
                shutil.rmtree(trial.parent)


def test_another_work_is_refused(run_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"seed 0 \(this run: 1\)"):
        checkpoint.resume(build(seed=1), run_folder, say=pytest.fail)
    with pytest.raises(ConfigError, match=r"global_batch_size 4 \(this run: 8\).*seq_len 16 \(this run: 8\)"):
        checkpoint.load(build(global_batch_size=8, seq_len=8), run_folder)
    assert checkpoint.load(build(learning_rate=1e-3, data="alice"), run_folder) == 2


@pytest.mark.parametrize(("option", "value"), [("max_tokens", 900), ("text_column", "body")])
def test_other_texts_of_the_same_file_are_other_work(option: str, value: object, tmp_path: Path) -> None:
    data = tmp_path / "two.jsonl"
    data.write_text(json.dumps({"text": "some words " * 300, "body": "other words " * 300}))
    checkpoint.save(build(data=str(data)), tmp_path / "run")
    with pytest.raises(ConfigError, match=rf"{option} None \(this run: {value!r}\)"):
        checkpoint.load(build(data=str(data), **{option: value}), tmp_path / "run")


# Facts


def say_otherwise(at: Path, **changed: object) -> None:
    """Rewrite facts of a checkpoint, with a manifest that agrees. A fact that is ... is taken out."""
    file = at / "facts.json"
    facts = {name: value for name, value in (json.loads(file.read_text()) | changed).items() if value is not ...}
    file.write_text(json.dumps(facts))
    folder.write_manifest(at, {name: folder.Digest.of(at / name) for name in files_of(at) if "manifest" not in name})


def test_a_newer_format_is_no_damage_and_nothing_replaces_it(run_folder: Path) -> None:
    newest = run_folder / "step-2"
    say_otherwise(newest, format=99)
    before = (newest / "facts.json").read_text()
    (newest / "index.bin").write_bytes(b"what a newer version keeps there")
    refused = pytest.raises(NewerFormatError, match=r"step-2/facts.json has format 99, this paralab reads 1: upgrade")
    engine = build()
    with refused:
        checkpoint.load(engine, newest)
    with refused:
        checkpoint.resume(engine, run_folder, say=pytest.fail)
    with refused:
        restore(run_folder)
    checkpoint.load(engine, run_folder / "step-1")
    train(engine, 1)
    with pytest.raises(DataError, match=r"step-2 was not saved.*has format 99"):
        checkpoint.save(engine, run_folder)
    train(engine, 1)
    checkpoint.save(engine, run_folder, keep_last=1, keep_best=False)
    assert (newest / "facts.json").read_text() == before, "neither replaced nor pruned"


def test_a_flipped_bit_in_the_format_is_damage(run_folder: Path) -> None:
    file = run_folder / "step-2" / "facts.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 3'))
    said: list[str] = []
    assert checkpoint.resume(build(), run_folder, say=said.append) == 1
    assert "its sha256 differs" in said[0]


@pytest.mark.parametrize(
    ("name", "value"),
    list(product(("step", "good_steps"), ("2", -1, None, 2.0, True, 10**20, [2], {}, ...)))
    + [("step", 1), ("metric", "low"), ("metric", True), ("metric", 10**400), ("work", []), ("run", None)]
    + [("loss_scale", value) for value in ("1", 0, -1.0, None, float("inf"), float("nan"), 10**400)]
    + [("torch", 2), ("format", "1"), ("format", 0), ("format", True), ("format", 1.0), ("format", ...), ("more", 1)],
)
def test_facts_of_another_form_are_one_line(name: str, value: object, run_folder: Path) -> None:
    say_otherwise(run_folder / "step-2", **{name: value})
    with pytest.raises(DataError, match=rf"""step-2/facts\.json.* "?{name}\b"""):
        folder.read_facts(run_folder / "step-2")
    assert folder.best(run_folder) is None


def test_the_checkpoint_before_one_with_odd_facts_is_taken(run_folder: Path) -> None:
    say_otherwise(run_folder / "step-2", step="2")
    said: list[str] = []
    assert checkpoint.resume(build(), run_folder, say=said.append) == 1
    assert 'facts.json: step is "2", a whole number from 0' in said[0]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"model": "resnet", "size": "tiny", "seq_len": None}, r"has an extra \S+, and .*facts\.json says resnet tiny"),
        ({"seq_len": 8}, r"embed\.positions\.weight is \(16, 32\) there and \(8, 32\) in the model"),
        ({"size": "enormous"}, "run: --size enormous is unknown"),
        ({"seq_len": "eight"}, "seq_len"),
        ({"model": None}, "model"),
    ],
    ids=str,
)
def test_a_checkpoint_that_is_not_what_it_says_is_one_line(run: dict, message: str, run_folder: Path) -> None:
    step = run_folder / "step-2"
    say_otherwise(step, run=folder.read_facts(step).run | run)
    with pytest.raises(DataError, match=message):
        restore(step)


# Weights


def test_weights_go_out_and_come_in(run_folder: Path, tmp_path: Path) -> None:
    engine = build()
    checkpoint.load(engine, run_folder)
    file = checkpoint.export_safetensors(run_folder, tmp_path / "weights")
    from safetensors.torch import load_file

    weights = load_file(file)
    assert weights.keys() == engine.parts[0].state_dict().keys() - {"head.weight"}  # tied
    model = engine.context.new_model().to_empty(device="cpu")
    model.head.weight = model.embed.tokens.weight
    assert model.load_state_dict(weights, strict=False) == (["head.weight"], [])
    tokens = torch.arange(16)[None]
    assert torch.equal(model.eval()(tokens), engine.parts[0].eval()(tokens))
    other = build(seed=1)
    checkpoint.import_safetensors(other, file.parent)
    assert all(torch.equal(p, weights[name]) for name, p in other.parameters())


def test_weights_of_another_model_are_refused(run_folder: Path, tmp_path: Path) -> None:
    checkpoint.export_safetensors(run_folder, tmp_path)
    with pytest.raises(DataError, match=r"embed\.positions.* is \(16, 32\) there and \(8, 32\) in the model"):
        checkpoint.import_safetensors(build(seq_len=8), tmp_path)
    with pytest.raises(DataError, match=r"there is no .*the model is another one"):
        checkpoint.import_safetensors(build(model="resnet", size="tiny"), tmp_path)


def test_a_missing_piece_in_the_middle_is_noticed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint.save(build(), tmp_path)
    (file,) = (tmp_path / "step-0").glob("*.safetensors")
    weights = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    rows = weights["embed.tokens.weight"]
    target = tmp_path / "weights"
    target.mkdir()
    for i, (start, end) in enumerate([(0, 10), (20, len(rows))]):
        offsets = {"embed.tokens.weight": {"saved_offsets": [start, 0]}}
        save_file(
            {"embed.tokens.weight": rows[start:end].contiguous()},
            target / f"{i}.safetensors",
            metadata={"DCP_SHARDING_INFO": json.dumps(offsets)},
        )
    del weights["embed.tokens.weight"]
    save_file(weights, target / "rest.safetensors")
    with pytest.raises(DataError, match=r"embed\.tokens\.weight is not complete"):
        checkpoint.import_safetensors(build(), target)


def test_the_code_in_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert (names["start"], folder.latest("runs/alice")) == (0, Path("runs/alice/step-4"))
    assert Path("weights/model.safetensors").exists()
