"""Batches in whatever form a program has them: tensors, pairs, tuples, dicts; and the rows of them that a rank takes.

A batch is (inputs, targets), or anything else where the model or the loss finds the targets in it by itself. Inputs
that are a tuple are passed on as positional arguments, a dict as keyword arguments. Dim 0 of every tensor is the
sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from paralab.data.dataset import Batch
from paralab.errors import DataError
from paralab.layout import Division


@dataclass(frozen=True)
class Form:
    """How the tensors of a batch lie in it. pair: whether it is (inputs, targets); else the targets are the inputs."""

    pair: bool
    inputs: TreeSpec
    targets: TreeSpec

    def __deepcopy__(self, memo: Any) -> "Form":
        return self  # nothing in it changes

    def call(self, function: Any, leaves: tuple[Tensor, ...]) -> Any:
        """Call a function with inputs, given as flat tensors (rows, ...), in the form that the program has them."""
        inputs = tree_unflatten(leaves, self.inputs)
        if isinstance(inputs, Mapping):
            return function(**inputs)
        return function(*inputs) if isinstance(inputs, (tuple, list)) else function(inputs)

    def targets_of(self, leaves: Tensor | tuple[Tensor, ...]) -> Any:
        """Return targets, given as flat tensors (rows, ...), in the form that the program has them."""
        return tree_unflatten(leaves if isinstance(leaves, tuple) else (leaves,), self.targets)


def flatten(batch: Any, *, has_loss: bool) -> tuple[Batch, Form]:
    """Return the tensors of a batch, each (rows, ...), and how they lie in it.

    has_loss: whether the program brings a loss, to which the second half of a pair belongs.
    Raises: DataError for what holds something else than tensors of equally many rows.
    """
    pair = has_loss and isinstance(batch, (tuple, list)) and len(batch) == 2
    inputs, targets = batch if pair else (batch, batch)
    (flat_inputs, inputs_form), (flat_targets, targets_form) = tree_flatten(inputs), tree_flatten(targets)
    leaves = [_tensor(x) for x in flat_inputs]
    asked = [_tensor(x) for x in flat_targets]
    if not leaves or not asked:
        raise DataError("a batch without tensors: give (inputs, targets), or a tensor, tuple or dict of tensors")
    rows = {x.shape[0] for x in (*leaves, *asked)}
    if len(rows) > 1:
        counts = " and ".join(map(str, sorted(rows)))
        raise DataError(f"the tensors of a batch have {counts} rows: dim 0 must be the sample, in all of them")
    return Batch(tuple(leaves), asked[0], tuple(asked[1:])), Form(pair, inputs_form, targets_form)


def _tensor(leaf: Any) -> Tensor:
    tensor = torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
    if not isinstance(tensor, Tensor):
        raise DataError(
            f"a batch holds {leaf!r:.60} of type {type(leaf).__name__}: leave it out, or make a tensor of it with one "
            "row for each sample"
        )
    if tensor.ndim == 0:
        raise DataError("a batch holds a tensor of shape (): dim 0 must be the sample, in all of them")
    return tensor


def rebuilt(batch: Batch, form: Form) -> Any:
    """Return a batch in the form that the program has it. Tensors are (rows, ...)."""
    inputs = tree_unflatten(batch.inputs, form.inputs)
    return (inputs, form.targets_of(batch.given)) if form.pair else inputs


def rows_of(batch: Batch, division: Division, data_rank: int) -> Batch:
    """Return the rows (rows / data ranks, ...) of a global batch that a data rank takes, in the order of `Division`."""
    mine = torch.tensor(division.rows_of(data_rank))
    return batch.each(lambda x: x[mine.to(x.device)])
