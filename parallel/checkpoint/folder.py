"""Checkpoints on disk: a folder each, written atomically, with a checksum of every file.

    RUN/latest                   the name of the newest checkpoint
    RUN/step-200/facts.json      step, run, layout, loss scale
    RUN/step-200/*.safetensors   tensors, one file per rank that had something to write
    RUN/step-200/manifest.json   size and sha256 of each of these files

A folder that ends in `.tmp` is being written, or its writer was killed: it is never read. One that ends in `.old`
is being replaced, and counts while its successor is not there.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paralab.errors import DataError, NewerFormatError

FORMAT = 1
FACTS, MANIFEST, LATEST = "facts.json", "manifest.json", "latest"
_STRAY = (".DS_Store", "._", ".nfs")  # begins what a desktop or a file server puts into any folder
_STEP_DIGITS = 18
_NAME = re.compile(rf"step-(\d{{1,{_STEP_DIGITS}}})(\.old)?")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a checkpoint holds besides tensors.

    step: optimizer steps done, which is also where the data and the learning rate go on. metric: what `keep_best`
    compares, smaller is better. work: what a run must share to continue this one. run: `RunConfig.to_dict()`.
    """

    step: int
    metric: float | None
    work: dict[str, Any]
    run: dict[str, Any]
    loss_scale: float
    good_steps: int
    torch: str
    format: int = FORMAT

    def save(self, folder: Path) -> None:
        write_synced(folder / FACTS, json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True)
class Digest:
    """Size and sha256 of a file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Digest":
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return cls(path.stat().st_size, digest.hexdigest())


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 10**_STEP_DIGITS


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


# What a fact must be, as JSON gives it: true is no number, and 3.0 no count.
_FACTS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "step": (f"a whole number from 0, of at most {_STEP_DIGITS} digits", _is_whole),
    "metric": ("a number or null", lambda value: value is None or _is_number(value)),
    "work": ("an object", lambda value: type(value) is dict),
    "run": ("an object", lambda value: type(value) is dict),
    "loss_scale": ("a number above 0", lambda value: _is_number(value) and 0 < value < math.inf),
    "good_steps": ("a whole number from 0", _is_whole),
    "torch": ("text", lambda value: type(value) is str),
    "format": (f"{FORMAT}", lambda value: type(value) is int and value == FORMAT),
}


def read_facts(folder: Path) -> Facts:
    """Read what a checkpoint says of itself.

    Raises: NewerFormatError; DataError naming the file and the field that is missing, unknown or of another form.
    """
    file = folder / FACTS
    values = _read_json(file)
    _check_not_newer(file, values)
    for name, (needed, fits) in _FACTS.items():
        if name not in values:
            raise DataError(f"{file} has no {name}, {needed} is needed: {_ADVICE}")
        if not fits(values[name]):
            raise DataError(f"{file}: {name} is {_shown(values[name])}, {needed} is needed: {_ADVICE}")
    for name in values.keys() - _FACTS.keys():
        raise DataError(f"{file} has the unknown {_shown(name)}: {_ADVICE}")
    named = _NAME.fullmatch(folder.name)
    if named and int(named[1]) != values["step"]:
        raise DataError(f"{file}: step is {values['step']}, the folder is named {folder.name}: {_ADVICE}")
    return Facts(**values)


def check_format(folder: Path) -> None:
    """Raise NewerFormatError for a checkpoint that a newer version wrote; one that is damaged passes.

    Its other files may be of a form that is not known here, so this comes before their verification. A format that
    was changed by a flipped bit is told by the checksum of the file, and left to `verify`.
    """
    try:
        values = _read_json(folder / FACTS)
    except DataError:
        return
    with contextlib.suppress(DataError, OSError):
        listed = _read_json(folder / MANIFEST).get(FACTS)
        if isinstance(listed, dict) and listed.keys() == {"bytes", "sha256"}:
            if asdict(Digest.of(folder / FACTS)) != listed:
                return
    _check_not_newer(folder / FACTS, values)


def is_newer(folder: Path) -> bool:
    """Return whether a newer version wrote a checkpoint."""
    try:
        check_format(folder)
    except NewerFormatError:
        return True
    return False


def _check_not_newer(file: Path, values: Mapping[str, Any]) -> None:
    found = values.get("format")
    if type(found) is int and found > FORMAT:
        raise NewerFormatError(
            f"{file} has format {found}, this paralab reads {FORMAT}: upgrade paralab, or go on from an older "
            "checkpoint in another folder (--resume RUN/step-N --out NEW)"
        )


def _shown(value: Any) -> str:
    """Return a value as JSON, in at most 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def checkpoints(run_folder: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first: those up to the one `latest` names, or all without it."""
    found = {}
    for path in run_folder.iterdir() if run_folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir() and not (match[2] and path.with_suffix("").is_dir()):
            found[path] = int(match[1])
    newest = found.get(run_folder / (pointer(run_folder) or ""))
    steps = {path: step for path, step in found.items() if newest is None or step <= newest}
    return sorted(steps, key=lambda path: steps[path], reverse=True)


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is of a checkpoint and not of a run: by its files, whatever its name (a copy, a link, `.`).

    One whose files are lost, or that does not exist, is still known by its name.
    """
    if any((path / name).is_file() for name in (FACTS, MANIFEST)):
        return True
    return _NAME.fullmatch(path.name) is not None and not checkpoints(path)


def pointer(run_folder: Path) -> str | None:
    """Return what `latest` says, or None when there is no such file."""
    try:
        return (run_folder / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def latest(run_folder: Path | str) -> Path | None:
    """Return the newest checkpoint of a run, not yet verified; None when there is none."""
    return next(iter(checkpoints(Path(run_folder))), None)


def best(run_folder: Path | str) -> Path | None:
    """Return the checkpoint with the smallest metric; None when none has one."""
    metrics = {}
    for path in checkpoints(Path(run_folder)):
        with contextlib.suppress(DataError):
            metric = read_facts(path).metric
            if metric is not None and math.isfinite(metric):
                metrics[path] = metric
    return min(metrics, key=lambda path: metrics[path], default=None)


def verify(folder: Path, *, rank: int = 0, ranks: int = 1) -> None:
    """Compare a checkpoint with its manifest. Each of several ranks reads its share of the files.

    Raises: DataError naming the file that is missing, truncated, changed or not listed.
    """
    listed = listed_files(folder)
    for name in sorted(listed)[rank::ranks]:
        try:
            found = Digest.of(folder / name)
        except OSError as error:
            raise DataError(f"{folder / name} cannot be read ({error.strerror}): {_ADVICE}") from error
        if asdict(found) != listed[name]:
            raise DataError(f"{folder / name} is not what was saved, its sha256 differs: {_ADVICE}")


def listed_files(folder: Path) -> dict[str, Any]:
    """Return what the manifest lists, once these files are found to be there, and no others. Raises: DataError."""
    listed = _read_json(folder / MANIFEST)
    there = {path.name for path in folder.iterdir() if not path.name.startswith(_STRAY)}
    for name in sorted(listed.keys() ^ (there - {MANIFEST})):
        raise DataError(f"{folder / name} {'is missing' if name in listed else 'is not in the manifest'}: {_ADVICE}")
    if FACTS not in listed:
        raise DataError(f"{folder / MANIFEST} does not list {FACTS}: {_ADVICE}")
    return listed


_ADVICE = "the checkpoint is damaged, use another one"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): {_ADVICE}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {_ADVICE}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} is not in the form it was saved in: {_ADVICE}")
    return values


def write_manifest(folder: Path, digests: Mapping[str, Digest]) -> None:
    listed = {name: asdict(digest) for name, digest in sorted(digests.items())}
    write_synced(folder / MANIFEST, json.dumps(listed, indent=2) + "\n")


def publish(unfinished: Path) -> Path:
    """Give a complete `step-N.tmp` its name, at once, replacing a checkpoint of that name. Return the new path."""
    final = unfinished.with_suffix("")
    old = final.with_suffix(".old")
    _sync(unfinished)
    if os.path.lexists(final):  # or a link that leads nowhere
        _delete(old)  # its successor is there
        os.rename(final, old)
    os.rename(unfinished, final)
    _sync(final.parent)
    pointed = final.parent / f"{LATEST}.tmp"
    write_synced(pointed, final.name + "\n")
    os.replace(pointed, final.parent / LATEST)
    _delete(old)
    return final


@dataclass(frozen=True)
class Kept:
    """Which checkpoints of a run stay: so many newest ones, the one with the smallest metric, those of these steps."""

    last: int
    best: bool
    steps: frozenset[int] = frozenset()


def prune(run_folder: Path, kept: Kept) -> None:
    """Delete all checkpoints but those that stay, and those of a newer format."""
    stay = {best(run_folder)} if kept.best else set()
    stay |= {run_folder / f"step-{step}{end}" for step in kept.steps for end in ("", ".old")}
    for path in checkpoints(run_folder)[kept.last :]:
        if path not in stay and not is_newer(path):
            doomed = path.with_suffix(".tmp")  # so that one deleted by half is not taken for a checkpoint
            os.rename(path, doomed)
            shutil.rmtree(doomed)


def remove_unfinished(run_folder: Path) -> None:
    """Delete what killed writers left."""
    for path in run_folder.glob("step-*.tmp"):
        _delete(path)


def _delete(path: Path) -> None:
    """Delete a folder, or a file or a link in its place: of a link not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_synced(path: Path, text: str) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
