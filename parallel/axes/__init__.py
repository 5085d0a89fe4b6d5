"""The ways of splitting: what each does to modules, gradients and optimizer, what it sends and what it holds.

The list of them is `paralab.layout.words.AXES`, outermost first: neighbours on the last axis are neighbours on a node.
A new axis is a subclass of `Axis` in a file of its own and its place in the loop below; `register` adds one of the
user's own.
"""

from paralab.axes.axis import Axis
from paralab.axes.context_parallel import ContextAxis
from paralab.axes.data import DataAxis
from paralab.axes.expert import ExpertAxis
from paralab.axes.pipeline import PipelineAxis
from paralab.axes.tensor import TensorAxis
from paralab.layout import Layout, words
from paralab.layout.words import register, unregister

for _axis in (PipelineAxis(), DataAxis(), ExpertAxis(), ContextAxis(), TensorAxis()):
    register(_axis)

__all__ = ["Axis", "all_axes", "register", "unregister", "used"]


def all_axes() -> list[Axis]:
    """Return every axis, outermost first."""
    return [axis for axis in words.AXES if isinstance(axis, Axis)]


def used(layout: Layout) -> list[Axis]:
    """Return the axes that a layout uses, outermost first."""
    return [axis for axis in all_axes() if axis.is_used(layout)]


def finishing_order(layout: Layout) -> list[Axis]:
    """Return the used axes in the order in which they complete gradients: innermost first, averages last."""
    inner_first = used(layout)[::-1]
    return [axis for axis in inner_first if not axis.averages] + [axis for axis in inner_first if axis.averages]
