"""Checkpoints that move between layouts: saved under one, loaded under any other, at any number of processes."""

import contextlib
import json
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, wait
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from paralab.axes import eight_bits
from paralab.axes.context import BuildContext
from paralab.checkpoint import storage
from paralab.checkpoint.folder import (
    LATEST,
    Facts,
    Kept,
    best,
    check_format,
    checkpoints,
    latest,
    pointer,
    read_facts,
    verify,
)
from paralab.checkpoint.random import new_random_chunks, random_chunks, set_random
from paralab.data.tokenizer import BUILT_IN, get_tokenizer
from paralab.engines.engine import Engine
from paralab.engines.state import Shapes, model_chunks, whole
from paralab.errors import ConfigError, DataError, NewerFormatError
from paralab.models import file_columns
from paralab.models.spec import ModelConfig
from paralab.planning.resolve import Work
from paralab.processes.mesh import Mesh

__all__ = [
    "Facts",
    "Saver",
    "best",
    "check_format",
    "check_same_work",
    "checkpoints",
    "export_safetensors",
    "import_safetensors",
    "latest",
    "load",
    "read_facts",
    "read_weights",
    "resume",
    "save",
]

PathLike = str | Path

TOKENIZER = "tokenizer_content"  # key of the work of a checkpoint, where its tokenizer is a file
_PLACES = ("out", "resume")  # where a run writes and reads: two that do the same elsewhere save the same bytes
_GRACE_S = 2.0  # for a checkpoint that is being written when a run fails


class Saver:
    """Saves the checkpoints of one run in the background, one at a time. Leaving its `with` waits for the last one.

    Every rank of the world makes one, in the same order (as with `make_mesh`), since saving talks on a process group
    of its own; every rank of the layout saves at the same steps. Older checkpoints are deleted, but for the
    `keep_last` newest ones, those after `keep_steps` steps and, with `keep_best`, the one with the smallest metric.
    timeout_s: how long a rank waits for one that does not answer.

    Raises: ConfigError where none would be kept.
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        mesh: Mesh,
        keep_last: int = 3,
        keep_best: bool = True,
        keep_steps: Collection[int] = (),
        timeout_s: float = 1800.0,
    ) -> None:
        if keep_last < 1:
            raise ConfigError(f"keep_last={keep_last}: at least 1 checkpoint must be kept")
        self.folder = Path(folder)
        self.kept = Kept(keep_last, keep_best, frozenset(keep_steps))
        self._group = _background_group(mesh, timeout_s)
        self._pending: tuple[storage.Writer, Future[Any]] | None = None

    def save(self, engine: Engine, *, metric: float | None = None) -> None:
        """Save the state after `engine.steps_done` steps. Training may go on as soon as this returns.

        metric: a validation loss, for `keep_best`. Raises: DataError when the save before this one failed.
        """
        self.join()
        chunks = engine.state() | random_chunks(engine.context)
        writer = storage.Writer(self.folder, facts=_facts(engine, metric), kept=self.kept)
        self._pending = writer, storage.save(chunks, writer=writer, group=self._group)

    def join(self) -> None:
        """Wait until the last checkpoint is on the disk. Raises: DataError when it could not be saved."""
        if self._pending is None:
            return
        (writer, future), self._pending = self._pending, None
        try:
            future.result()
        except CheckpointException as error:
            raise writer.failed(error) from error

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.join()
        elif self._pending is not None:  # other ranks may be gone: what ended the run must not wait for them
            wait([self._pending[1]], timeout=_GRACE_S)


def save(engine: Engine, folder: PathLike, *, metric: float | None = None, **keep: Any) -> None:
    """Save one checkpoint into the folder of a run and wait for it. `keep`: options of `Saver`. Collective."""
    with Saver(folder, mesh=engine.context.mesh, **keep) as saver:
        saver.save(engine, metric=metric)


def load(engine: Engine, path: PathLike, *, say: Callable[[str], None] = lambda text: None) -> int:
    """Continue from a checkpoint: `step-N`, or the newest one when the folder of a run is given. Collective.

    say: is told where moments in 8 bits had to be rounded once more (on every rank).
    Returns: the steps done, where the data goes on.
    Raises: DataError when it cannot be read; ConfigError when it belongs to other work.
    """
    world = engine.context.mesh.world
    folder, facts, saved = _together(world, lambda rank, ranks: _open(Path(path), rank=rank, ranks=ranks))
    _check_same_work(folder, facts, engine.context)
    random = new_random_chunks(engine.context, saved)
    chunks = engine.new_state(saved)
    storage.load(chunks | random, folder, group=world)
    engine.take_state(chunks, saved)
    _tell_rounded(engine, say)
    set_random(engine.context, random)
    engine.steps_done = facts.step
    if facts.run.get("precision") == engine.context.run.precision:  # another one has a scale of its own
        engine.loss_scale.value, engine.loss_scale.good_steps = facts.loss_scale, facts.good_steps
    if engine.context.own is not None:
        engine.context.own.take_state(facts.run.get("own", {}), engine.optimizers[0])
    return facts.step


def _tell_rounded(engine: Engine, say: Callable[[str], None]) -> None:
    """Tell how many blocks of 8-bit moments another layout cuts otherwise. Collective where a run has such moments."""
    context = engine.context
    if context.run.optimizer != eight_bits.NAME or context.own is not None:
        return
    counts = torch.tensor(getattr(engine, "rounded", (0, 0)), device=context.device)
    if context.mesh.world is not None:
        dist.all_reduce(counts, group=context.mesh.world)
    rounded, blocks = counts.tolist()
    if rounded:
        say(
            f"{rounded:,} of {blocks:,} blocks of 8-bit optimizer states hold other numbers than in the checkpoint, "
            "and were rounded once more: it was saved under a layout that cuts them elsewhere"
        )


def resume(engine: Engine, folder: PathLike, *, say: Callable[[str], None]) -> int:
    """Continue from the newest checkpoint of a run that can be read. Collective.

    say: is told of each damaged one that is passed over (on every rank).
    Returns: the steps done; 0 where there is no checkpoint yet.
    Raises: DataError when there are checkpoints and none can be read; NewerFormatError where a newer version wrote one,
    which is not damaged; ConfigError when they belong to other work.
    """
    run_folder = Path(folder)
    world = engine.context.mesh.world
    found, name = _together(world, lambda rank, ranks: (checkpoints(run_folder), pointer(run_folder)))
    if found and found[0].name != name:
        say(f"{run_folder / LATEST} {f'says {name!r}' if name else 'is missing'}: taking {found[0].name}")
    for i, path in enumerate(found):
        try:
            return load(engine, path, say=say)
        except NewerFormatError:
            raise
        except DataError as error:
            older = f"taking {found[i + 1].name}" if i + 1 < len(found) else "there is none before it"
            say(f"{error}; {older}")
    if found:
        raise DataError(f"none of the {len(found)} checkpoints in {run_folder} can be read: use another folder")
    return 0


def read_weights(path: PathLike) -> dict[str, Tensor]:
    """Read the parameters and buffers of a checkpoint in this process alone.

    Returns: canonical name -> tensor of its whole shape on the CPU, in the dtype it was saved in.
    Raises: DataError when the checkpoint is missing, damaged or of a newer format.
    """
    folder, _, saved = _open(Path(path))
    tensors = {
        name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in saved.items() if name.startswith("model.")
    }
    storage.load({name: [whole(tensor)] for name, tensor in tensors.items()}, folder, group=None)
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def export_safetensors(path: PathLike, target: PathLike) -> Path:
    """Write the weights of a checkpoint to `target/model.safetensors`, under canonical names. Return that path.

    A tied parameter is there once. Raises: DataError.
    """
    from safetensors.torch import save_file

    weights = read_weights(path)
    file = Path(target) / "model.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file, metadata={"format": "pt"})
    return file


def import_safetensors(engine: Engine, folder: PathLike) -> None:
    """Fill the model from safetensors files with canonical names; the optimizer stays as it is. Collective.

    Raises: DataError when a tensor is missing or of another shape.
    """
    storage.load(model_chunks(engine, prefix=""), Path(folder), group=engine.context.mesh.world)


def _open(path: Path, *, rank: int = 0, ranks: int = 1) -> tuple[Path, Facts, Shapes]:
    """Find and verify a checkpoint, each rank its share of the files; return what is in it."""
    if not path.is_dir():
        raise DataError(f"{path} is not a folder: give a checkpoint such as RUN/step-200, or the folder of a run")
    folder = path if path.name.startswith("step-") else latest(path)
    if folder is None:
        raise DataError(f"{path} has no checkpoint: give one such as RUN/step-200, or the folder of a run")
    check_format(folder)
    verify(folder, rank=rank, ranks=ranks)
    return folder, read_facts(folder), storage.shapes(folder)


_GROUPS: dict[tuple, dist.ProcessGroup] = {}


def _background_group(mesh: Mesh, timeout_s: float) -> dist.ProcessGroup | None:
    """Return a second group of the same ranks, on the CPU. It is made once and kept."""
    if mesh.world is None:
        return None
    ranks = range(mesh.layout.world_size)
    key = (id(dist.group.WORLD), ranks, timeout_s)
    if key not in _GROUPS:
        _GROUPS[key] = dist.new_group(list(ranks), backend="gloo", timeout=timedelta(seconds=timeout_s))
    return _GROUPS[key]


def _together(world: dist.ProcessGroup | None, function: Callable[[int, int], Any]) -> Any:
    """Call function(rank, ranks) on every rank; return what rank 0 got, or raise on all what one raised."""
    if world is None:
        return function(0, 1)
    rank, ranks = dist.get_rank(world), dist.get_world_size(world)
    answer, error = None, None
    try:
        answer = function(rank, ranks)
    except DataError as raised:
        error = raised
    errors: list[DataError | None] = [None] * ranks
    dist.all_gather_object(errors, error, group=world)
    for error in filter(None, errors):
        raise error
    answers = [answer]
    dist.broadcast_object_list(answers, group=world, group_src=0)
    return answers[0]


def _facts(engine: Engine, metric: float | None) -> Facts:
    return Facts(
        step=engine.steps_done,
        metric=metric,
        work=_work(engine.context),
        run=_run(engine),
        loss_scale=engine.loss_scale.value,
        good_steps=engine.loss_scale.good_steps,
        torch=torch.__version__,
    )


def _run(engine: Engine) -> dict[str, Any]:
    run = {name: value for name, value in engine.context.run.to_dict().items() if name not in _PLACES}
    own = engine.context.own
    return run if own is None else run | {"own": own.state(engine.optimizers[0])}


def _work(context: BuildContext | Work) -> dict[str, Any]:
    """Return what two runs must share for one to continue the other, as JSON gives it back.

    Of the data that is its content: its name is stored to be shown.
    """
    if isinstance(context, BuildContext) and context.own is not None:
        return dict(context.own.identity(context))
    run = context.run
    work = {
        "model": context.spec.name,
        "data": run.data or context.spec.data(context.model_config),
        "data_sha256": context.data_sha256,
        "seed": run.seed,
        "global_batch_size": context.division.global_batch_size,
        "optimizer": run.optimizer,
    }
    if run.max_tokens is not None:
        work["max_tokens"] = run.max_tokens
    if sha256 := file_columns(run.model)["model_sha256"]:
        work["model_sha256"] = sha256
    if run.text_column != "text":
        work["text_column"] = run.text_column
    if tokenizer := tokenizer_of(context.model_config):
        work[TOKENIZER] = tokenizer
    config = asdict(context.model_config)
    config.pop("channels_last", None)  # how memory is laid out: the same numbers
    if config.get("residual") == "on":  # as in checkpoints of before there was a choice
        del config["residual"]
    return json.loads(json.dumps(work | config))


def tokenizer_of(config: ModelConfig) -> str | None:
    """Return what the tokenizer of a model is by its content, where it is a file. Raises: DataError."""
    name = getattr(config, "tokenizer", None)
    return get_tokenizer(name).name if name is not None and name not in BUILT_IN else None


def check_same_work(path: PathLike, context: BuildContext | Work) -> None:
    """Refuse to continue from a checkpoint, or from the newest one of a run, that belongs to other work.

    Reads what it says of itself and nothing else, so one that is missing or damaged is left to `load` and `resume`.
    Raises: ConfigError.
    """
    path = Path(path)
    folder = path if path.name.startswith("step-") else latest(path)
    with contextlib.suppress(DataError):
        if folder is not None:
            _check_same_work(folder, read_facts(folder), context)


def _check_same_work(folder: Path, facts: Facts, context: BuildContext | Work) -> None:
    ours = _work(context)
    _check_same_tokenizer(folder, facts.work, ours)
    keys = (facts.work.keys() | ours.keys()) - {"data", "data_sha256", "model_sha256", "tokenizer", TOKENIZER}
    different = [
        f"{key} {facts.work.get(key)!r} (this run: {ours.get(key)!r})"
        for key in sorted(keys)
        if facts.work.get(key) != ours.get(key)
    ]
    if different:
        raise ConfigError(
            f"checkpoint {folder} belongs to a run with {', '.join(different)}: "
            f"ask for the same, or start from step 0 in another folder"
        )
    _check_same_data(folder, facts.work, ours)
    _check_same_tensors(folder, facts.work, ours, context)


def _check_same_tensors(
    folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], context: BuildContext | Work
) -> None:
    """Compare names and shapes with those of the model: the same config can be built otherwise by another file."""
    stored = storage.shapes(folder)
    saved = {name.removeprefix("model."): shape for name, (shape, _) in stored.items() if name.startswith("model.")}
    tied = context.spec.tied_in(context.model_config)
    tensors = context.new_model().state_dict()
    needed = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name not in tied}
    different = [name for name in (*needed, *saved) if saved.get(name) != needed.get(name)]
    if not different:
        return
    name = different[0]
    there, here = (f"{shape}" if shape is not None else "missing" for shape in (saved.get(name), needed.get(name)))
    was, now = (str(x.get("model_sha256", "unknown"))[:12] for x in (theirs, ours))
    changed = f", whose file has changed since (sha256 {was}, now {now})" if was != now else ""
    raise ConfigError(
        f"checkpoint {folder}: {name} is {there} there and {here} in {context.spec.name}{changed}: ask for the model "
        "that was saved, or start from step 0 in another folder"
    )


def _check_same_data(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Compare by content. A checkpoint of before contents were stored has the name alone."""
    key = "data_sha256" if "data_sha256" in theirs else "data"
    if theirs.get(key) == ours.get(key):
        return
    was, now = (f"{x.get('data')} (sha256 {str(x.get('data_sha256', 'unknown'))[:12]})" for x in (theirs, ours))
    changed = " has changed since" if theirs.get("data") == ours["data"] else " is other data"
    raise ConfigError(
        f"checkpoint {folder} was trained on {was}, {now}{changed}: give --data what it was trained on, under any "
        f"path, or start from step 0 with another --out"
    )


def _check_same_tokenizer(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Compare by content. A checkpoint of before contents were stored has the path alone."""
    key = TOKENIZER if TOKENIZER in theirs else "tokenizer"
    if theirs.get(key) == ours.get(key):
        return
    was, now = (x.get(TOKENIZER) or x.get("tokenizer") for x in (theirs, ours))
    raise ConfigError(
        f"checkpoint {folder} was trained with tokenizer {was}, this run has {now}: give --tokenizer what it was "
        "trained with, under any path, or start from step 0 in another folder"
    )
