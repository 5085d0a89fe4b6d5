"""What two runs must share for one to continue the other: model, data, tokenizer, batch, seed and optimizer.

Other options may differ, and those that change what is computed are said.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import Field, asdict, fields
from pathlib import Path
from typing import Any

from paralab.axes.context import BuildContext
from paralab.checkpoint import storage
from paralab.checkpoint.folder import Facts, is_checkpoint, latest, listed_files, read_facts
from paralab.data.tokenizer import BUILT_IN, get_tokenizer
from paralab.errors import ConfigError, DataError
from paralab.models import file_columns
from paralab.models.configs import ModelConfig
from paralab.options.config import RunConfig
from paralab.options.option import MEMORY, OPTIMIZER, flag_of
from paralab.options.settings import shown
from paralab.planning.work import Work

TOKENIZER = "tokenizer_content"  # key of the work of a checkpoint, where its tokenizer is a file
# Options that change what is computed or measured from here on, beside those of the optimizer, precision and speed.
# Cosine decay reaches its end at the last step, and the best loss is of the samples that are evaluated on.
_SAID = ("accumulation", "engine", "ds_config", "grad_compression", "steps", "warmup", "eval_samples")


def check_same_work(path: str | Path, context: BuildContext | Work) -> None:
    """Refuse to continue from a checkpoint, or from the newest one of a run, that belongs to other work.

    Reads what it says of itself and nothing else, so one that is missing or damaged is left to `load` and `resume`.
    Raises: ConfigError.
    """
    path = Path(path)
    folder = path if is_checkpoint(path) else latest(path)
    with contextlib.suppress(DataError):
        if folder is not None:
            listed_files(folder)  # tensors of a file that is missing would look like those of another model
            compare_work(folder, read_facts(folder), context)


def compare_work(folder: Path, facts: Facts, context: BuildContext | Work) -> None:
    """Raise ConfigError where a checkpoint belongs to other work: in what they differ, and what to give instead."""
    ours = work_of(context)
    if (was := facts.work.get("model", now := ours.get("model"))) != now:  # all else differs as well
        raise ConfigError(
            f"checkpoint {folder} is of --model {was}, this run has {now}: ask for the same, or start from step 0 in "
            "another folder"
        )
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


def other_options(saved: Mapping[str, Any], run: RunConfig) -> list[str]:
    """Return the options that have other values than in the run of a checkpoint, each as `--clip-norm 1.0, now 0.5`.

    saved: `RunConfig.to_dict()` of that run; what it lacks is unknown and not compared. The layout, which the heading
    of a run names, is left out.
    """
    now = json.loads(json.dumps(run.to_dict()))
    return [
        f"{flag_of(declared)} {_word(saved[name], declared)}, now {_word(now[name], declared)}"
        for declared in fields(run)
        if (name := declared.name) in saved
        and saved[name] != now[name]
        and (declared.metadata["group"] in (OPTIMIZER, MEMORY) or name in _SAID)
    ]


def _word(value: Any, declared: Field) -> str:
    absent = "not given" if declared.default is None else "none"
    return absent if value is None else shown(value)


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


def work_of(context: BuildContext | Work) -> dict[str, Any]:
    """Return what two runs must share for one to continue the other, as JSON gives it back.

    Of the data that is its content: its name is stored to be shown. Raises: DataError where data cannot be read.
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
