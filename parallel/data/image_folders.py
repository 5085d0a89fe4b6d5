"""Folders of images: which of them are splits, which are classes, and what is found in them.

A class folder holds images; a split folder (train, valid, test under their usual names) holds class folders. So a
class may be called `train`. Hidden folders and folders without images count as nothing. Classes are numbered once
over all splits. Whatever could be meant in two ways is refused, with what was found and what to type.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from paralab.data.dataset import SPLIT_NAMES, USED_FOR
from paralab.data.pixels import SUFFIXES
from paralab.errors import DataError

HELD_OUT = 10  # of a set without splits: one image in ten
_HIDDEN = {"__macosx", "@eadir", "$recycle.bin", "system volume information"}  # of macOS, Synology, Windows
_SHOWN = 10  # classes named in a line
_FORM = "FOLDER/CLASS/image.png, or FOLDER/train/CLASS/image.png and FOLDER/valid/CLASS/image.png"


@dataclass
class Folder:
    """What is visible in a folder. folders: those that hold images at any depth, by name."""

    path: Path
    pictures: list[Path] = field(default_factory=list)
    folders: dict[str, "Folder"] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)  # files that are no images, by ending, at any depth

    @cached_property
    def n_pictures(self) -> int:
        """Images at any depth."""
        return len(self.pictures) + sum(folder.n_pictures for folder in self.folders.values())

    def all_pictures(self) -> list[Path]:
        """Return the images at any depth, sorted."""
        return sorted([*self.pictures, *(file for folder in self.folders.values() for file in folder.all_pictures())])

    @property
    def holds_classes(self) -> bool:
        """Whether its images lie in folders, but for some that were left beside them."""
        return self.n_pictures > 2 * len(self.pictures)


@dataclass(frozen=True)
class Split:
    """One split. name: that of its folder, empty where the set has none. images: class and file, in order."""

    name: str
    pictures: Sequence[tuple[str, Path]]

    def count(self, number: int) -> str:
        return f"{self.name} {number:,} images".strip() if number != 1 else f"{self.name} 1 image".strip()


@dataclass(frozen=True)
class PictureSet:
    """A folder of images that was understood. splits: by role (train, validation, test), or by "" the only one."""

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, Split]
    left_out: tuple[str, ...]

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    def role(self, split: str) -> str | None:
        """Return which of the splits is read for `split` (train, validation); None where there is none.

        The test split takes the place of a validation split that is not there, and only then.
        """
        if "" in self.splits:
            return ""
        roles = ("validation", "test") if split == "validation" else (split,)
        return next((role for role in roles if role in self.splits), None)

    def pictures(self, split: str) -> list[tuple[str, Path]]:
        """Return class and file of each image of a split. Raises: DataError when it has none."""
        role = self.role(split)
        if role is None:
            only = next(iter(self.splits.values())).name
            raise DataError(
                f"{self.root} has no split for {USED_FOR[split]}, only {only}: add a folder valid, or use "
                f"--data file:{self.root / only}, of which one image in {HELD_OUT} is held out"
                if split == "validation"
                else f"{self.root} has no split for training, only {only}: call its folder train"
            )
        pictures = list(self.splits[role].pictures)
        if role == "":
            pictures = [x for i, x in enumerate(pictures, 1) if (i % HELD_OUT == 0) == (split == "validation")]
        if not pictures:
            raise DataError(
                f"{self.root} has {len(self.splits[''].pictures)} images, of which one in {HELD_OUT} is held out for "
                f"validation: too few for {USED_FOR[split]}, add some, or a folder valid beside a folder train"
            )
        return pictures

    def used(self) -> Iterator[tuple[str, str, Path]]:
        """Yield purpose, class and file of each image that a training reads, in order."""
        roles = {self.role(split): split for split in ("validation", "train")}
        for role, split in reversed(roles.items()):
            if role is not None:
                yield from ((split, name, path) for name, path in self.splits[role].pictures)

    @property
    def found(self) -> str:
        """Say what was found and what is used for what."""
        shown = self.classes if len(self.classes) <= _SHOWN else (*self.classes[: _SHOWN - 1], "...", self.classes[-1])
        n = len(self.classes)
        head = f"{n} class{'es' if n != 1 else ''} ({', '.join(shown)})"
        return _printable("; ".join([head, ", ".join(self._uses()), *self.left_out]))

    def _uses(self) -> Iterator[str]:
        if (whole := self.splits.get("")) is not None:
            held_out = len(whole.pictures) // HELD_OUT
            yield f"{whole.count(len(whole.pictures) - held_out)} for training"
            yield f"{held_out:,} (one in {HELD_OUT}) for validation"
            return
        purposes = {self.role("train"): "for training", self.role("validation"): "for validation"}
        if self.role("validation") == "test":
            purposes["test"] = "for validation, as no other split is there for it"
        for role, split in self.splits.items():
            yield f"{split.count(len(split.pictures))} {purposes.get(role, 'not used')}"
        if self.role("validation") is None:
            yield "none for validation"


def find_pictures(root: Path) -> PictureSet:
    """Read the names in a folder and understand them. Raises: DataError, with what was found and what to type."""
    folder = _read(root)
    splits = _splits(folder)
    beside = [sub for name, sub in folder.folders.items() if splits and sub not in splits.values()]
    levels = splits or {"": folder}
    found = {role: Split(level.path.name if role else "", list(_classes(level))) for role, level in levels.items()}
    classes = sorted({name for split in found.values() for name, _ in split.pictures})
    _check_case(classes, root)
    strays = sum(len(level.pictures) for level in {id(x): x for x in (folder, *levels.values())}.values())
    return PictureSet(root, tuple(classes), found, tuple(_left_out(found, beside, strays, folder.others)))


def _read(path: Path, above: frozenset[str] = frozenset()) -> Folder:
    """Read a folder and those in it. Links are followed, but for one that leads to a folder it lies in."""
    here = Folder(path)
    above = above | {os.path.realpath(path)}
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"folder {path} cannot be read ({error.strerror}): check its permissions") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in _HIDDEN:
            continue
        if entry.is_dir():
            if os.path.realpath(entry.path) in above:
                continue
            sub = _read(path / entry.name, above)
            here.others += sub.others
            if sub.n_pictures:
                here.folders[entry.name] = sub
        elif (suffix := Path(entry.name).suffix.lower()) in SUFFIXES:
            here.pictures.append(path / entry.name)
        else:
            here.others[suffix or "no ending"] += 1
    return here


def _splits(root: Folder) -> dict[str, Folder]:
    """Return the split folders by role, in the order of use; empty where the folder holds classes."""
    named = {name: role for name in root.folders if (role := SPLIT_NAMES.get(name.lower()))}
    nested = [name for name in named if root.folders[name].holds_classes]
    others = [name for name in root.folders if name not in named]
    alone = len(named) == 1 and others
    if not named or (alone and not nested):
        return {}  # `train` beside `bus` and `car` is a class
    if not nested:
        raise DataError(
            f"{root.path} has {_and(named)}, which hold images and no folder for each class: "
            f"put the images into folders named by their class, as in {_FORM}"
        )
    if alone:
        split = root.folders[nested[0]]
        raise DataError(
            f"{split.path} holds folders as a split does ({_and(split.folders)}) and is beside {_and(others)}, which "
            f"are called otherwise: use --data file:{split.path} for it alone, or call each split one of "
            f"{', '.join(SPLIT_NAMES)}"
        )
    by_role: dict[str, Folder] = {}
    for name in nested:
        if named[name] in by_role:
            both = f"{by_role[named[name]].path.name} and {name}"
            raise DataError(f"{root.path} has {both}, which are both its {named[name]} split: keep one of them")
        by_role[named[name]] = root.folders[name]
    return {role: by_role[role] for role in ("train", "validation", "test") if role in by_role}


def _classes(level: Folder) -> Iterator[tuple[str, Path]]:
    """Yield class and file of each image of a folder of classes. Raises: DataError when it is none."""
    if not level.folders:
        what = f"{len(level.pictures)} images and no folder of any" if level.pictures else "no images"
        others = f" ({sum(level.others.values())} other files: {_and(sorted(level.others))})" if level.others else ""
        raise DataError(
            f"{level.path} has {what}{others}: IDX files are needed (train-images-idx3-ubyte, ...), or one "
            f"subfolder of images a class, as in {_FORM}"
        )
    if without := _without_own(level):
        inside = _and(level.folders[without[0]].folders)
        leads = " or ".join(f"--data file:{path}" for path in _sets_in(level.folders[name] for name in without))
        raise DataError(
            f"in {level.path}, {without[0]} holds no images itself, but folders of them ({inside}): "
            + (f"use {leads}, or " if leads else "")
            + f"put the images of each class into its folder itself, as in {_FORM}"
        )
    for name, folder in level.folders.items():
        yield from ((unicodedata.normalize("NFC", name), path) for path in folder.all_pictures())


def _without_own(level: Folder) -> list[str]:
    """Return the folders that hold images only in folders of their own: they are no classes."""
    return [name for name, folder in level.folders.items() if not folder.pictures]


def _sets_in(folders: Iterable[Folder]) -> Iterator[Path]:
    """Yield the uppermost of these folders, and of those in them, that hold splits or classes."""
    for folder in folders:
        try:
            levels = list(_splits(folder).values()) or [folder]
        except DataError:
            levels = []
        if levels and all(level.folders and not _without_own(level) for level in levels):
            yield folder.path
        else:
            yield from _sets_in(folder.folders.values())


def _check_case(classes: Sequence[str], root: Path) -> None:
    by_lower: dict[str, str] = {}
    for name in classes:
        if (other := by_lower.setdefault(name.strip().casefold(), name)) != name:
            raise DataError(
                f"{root} has the classes {other!r} and {name!r}, which differ in case or blanks alone: rename one"
            )


def _left_out(found: dict[str, Split], beside: Sequence[Folder], strays: int, others: Counter[str]) -> Iterator[str]:
    """Yield what is there and not used, and classes that cannot be learnt."""
    for folder in beside:
        yield f"{folder.path.name} {folder.n_pictures:,} images not used: it holds no split with classes"
    if strays:
        yield f"{strays:,} images outside of class folders not used"
    if others:
        yield f"{sum(others.values()):,} other files not read ({', '.join(sorted(others)[:5])})"
    if "train" in found:
        learnt = {name for name, _ in found["train"].pictures}
        unseen = sorted({name for split in found.values() for name, _ in split.pictures} - learnt)
        if unseen:
            yield f"no image of {_and(unseen)} for training"


def _and(names: Sequence[str] | dict) -> str:
    names = list(names)
    names = [*names[:5], "..."] if len(names) > 6 else names
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _printable(text: str) -> str:
    """Return a line without line breaks, control codes and letters that are not of any encoding."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
