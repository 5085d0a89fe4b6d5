"""The words of a layout: what each axis adds to the grammar, and the list of all axes. Imports no torch.

What an axis does to modules, gradients and memory stands with the axis itself (`paralab.axes`), which puts itself
into this list; the grammar, the mesh, the columns of a row and the help ask the list and know no axis by name.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paralab.layout.layout import Layout


@dataclass(frozen=True)
class LayoutOption:
    """A word after the slash that belongs to an axis, such as `zero3`, `1f1b`, `mb4` or `sp`.

    name: of the attribute of `Layout` that holds its value. default: the value where the word is left out.
    read: return the value that a word stands for, None where the word is not of this option. write: return the word of
    a value. examples: words that are offered where one is misspelt. place: where the word stands among the others when
    a layout is printed, smallest first. elsewhere: words that other projects have, and what to say where one is typed.
    """

    name: str
    default: Any
    read: Callable[[str], Any]
    write: Callable[[Any], str]
    examples: tuple[str, ...]
    place: int = 99
    elsewhere: Mapping[str, str] = field(default_factory=dict)


def number_option(name: str, word: str, *, default: Any, examples: Sequence[str], place: int = 99) -> LayoutOption:
    """Return an option that is written as a word and a number, such as `mb4`."""

    def read(text: str) -> int | None:
        match = re.fullmatch(rf"{word}([0-9]{{1,9}})", text)
        return int(match[1]) if match else None

    return LayoutOption(name, default, read, lambda value: f"{word}{value}", tuple(examples), place)


def flag_option(name: str, word: str, *, place: int = 99) -> LayoutOption:
    """Return an option that is there or not, such as `sp`."""
    return LayoutOption(name, False, lambda text: True if text == word else None, lambda _: word, (word,), place)


def choice_option(name: str, words: Sequence[str], *, place: int = 99) -> LayoutOption:
    """Return an option that is one of several words, such as a pipeline schedule; None where it is left out."""
    return LayoutOption(name, None, lambda text: text if text in words else None, str, tuple(words), place)


class AxisWords:
    """What an axis says of itself before anything heavy is loaded.

    name: as in layouts, meshes and column names. title: in full, such as "tensor". place: where its degree stands when
    a layout is printed, smallest first. options: its words after the slash. inside: the axis whose ranks it groups;
    else its degree multiplies the processes.
    """

    name: str
    title: str
    place: int = 99
    options: tuple[LayoutOption, ...] = ()
    inside: str | None = None

    def complete(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return values of options that follow from the others, by name."""
        return {}

    def check_layout(self, layout: "Layout") -> None:
        """Raise LayoutError where the axis and its options do not fit together."""

    def is_used(self, layout: "Layout") -> bool:
        """Return whether a layout divides this axis, or gives it an option that works without being divided."""
        return layout.size(self.name) > 1

    def columns(self, layout: "Layout") -> Mapping[str, Any]:
        """Return what a row says of the axis: its degree and its options, by column."""
        return {self.name: layout.size(self.name)} | {o.name: getattr(layout, o.name) for o in self.options}

    def dims(self, layout: "Layout") -> Mapping[str, int]:
        """Return the dims that the axis has in the mesh, outermost first: its own, or several in its place."""
        return {self.name: layout.size(self.name)}

    def joined(self, layout: "Layout") -> "Mapping[str, tuple[str, ...]]":
        """Return dims of the mesh, of this axis and of others, that it works on as if they were one, by a name."""
        return {}


AXES: list[AxisWords] = []  # outermost first: neighbours on the last axis are neighbours on a node


def register(axis: AxisWords) -> None:
    """Put an axis at the end of the list, innermost.

    Raises: ValueError where its name could not be written in a layout, or one of its names is taken.
    """
    from paralab.layout.layout import Layout  # which reads this list

    if not re.fullmatch("[a-z]+", axis.name):
        raise ValueError(f"axis {axis.name!r}: a layout writes it before its degree, use a name of the letters a to z")
    names = {axis.name, *(option.name for option in axis.options)}
    taken = {name for other in AXES for name in (other.name, *(option.name for option in other.options))}
    if clash := {name for name in names if name in taken or hasattr(Layout, name)}:
        raise ValueError(f"axis {axis.name!r}: {', '.join(sorted(clash))} is taken, use another name")
    AXES.append(axis)


def unregister(axis: AxisWords) -> None:
    """Take an axis out of the list again."""
    AXES.remove(axis)


def options() -> list[LayoutOption]:
    """Return the options of all axes, in the order in which they are printed."""
    return sorted((option for axis in AXES for option in axis.options), key=lambda option: option.place)


def printed() -> list[AxisWords]:
    """Return all axes in the order in which their degrees are printed."""
    return sorted(AXES, key=lambda axis: axis.place)
