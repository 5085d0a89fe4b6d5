"""Evaluate the loss on held-out data during training, under any layout: only forward passes, each sample once.

A pipeline is not run by its schedule here (some of torch's cannot go forward alone, and all need whole
micro-batches): each stage receives from the one before it and sends to the next, batch after batch.
"""

import contextlib
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from paralab.axes import used
from paralab.axes.pipeline.boundaries import boundary_shapes
from paralab.axes.precision import in_dtype, weight_dtype
from paralab.data.dataset import Batch, Dataset
from paralab.engines.engine import Engine
from paralab.errors import ConfigError
from paralab.planning.work import Work


@dataclass(frozen=True)
class Validation:
    """What held-out data gave. loss: mean over the samples. accuracy: share of them, of classifiers. Text has bits."""

    samples: int
    loss: float
    accuracy: float | None = None
    bits_per_byte: float | None = None

    def __str__(self) -> str:
        bits = f"  {self.bits_per_byte:.4f} bits/byte" if self.bits_per_byte is not None else ""
        accuracy = f"  accuracy {self.accuracy:.2%}" if self.accuracy is not None else ""
        return f"validation loss {self.loss:.4f}{bits}{accuracy}"


def count_samples(work: Work, dataset: Dataset, *, most_samples: int | None) -> int:
    """Return how many held-out samples are evaluated: where a loss is over a whole batch, those of whole batches.

    Raises: ConfigError where there is not one such batch.
    """
    samples = min(dataset.n_samples, most_samples or dataset.n_samples)
    batch = work.division.global_batch_size
    if not work.spec.whole_batch:
        return samples
    if samples < batch:
        raise ConfigError(
            f"evaluation on {samples} held-out samples with {work.spec.name}, whose loss is over a whole batch of "
            f"{batch}: use --global-batch-size {samples} or less, or more --eval-samples"
        )
    return samples - samples % batch


class Evaluator:
    """Evaluates an engine on the validation split, or on the first `most_samples` of it. Collective."""

    def __init__(self, work: Work, engine: Engine, *, most_samples: int | None = None) -> None:
        self.work, self.engine = work, engine
        self.dataset = work.dataset("validation")
        self.samples = count_samples(work, self.dataset, most_samples=most_samples)
        self.forward = Stages(engine) if work.layout.pp > 1 else self._whole
        self.right: Tensor | None = None  # answers in the last batch, where a classifier's head is

    def __call__(self) -> Validation:
        mesh, division = self.engine.context.mesh, self.work.division
        rows = division.dp * division.micro_batch_size
        totals = torch.zeros(2, dtype=torch.float64, device=mesh.device)  # loss, right answers
        with torch.no_grad(), self._evaluating():
            for start in range(0, self.samples, rows):
                batch, weight = self._batch(np.arange(start, min(start + rows, self.samples)))
                loss = self.forward(batch)
                if loss is not None and weight:
                    right = self.right if self.right is not None else 0.0
                    totals += torch.stack([loss.double() * weight, torch.as_tensor(right).to(totals)])
        if mesh.world is not None:
            totals /= prod(axis.loss_copies(mesh.layout) for axis in used(mesh.layout) if not axis.averages)
            dist.all_reduce(totals, group=mesh.world)
        loss, right = (totals / self.samples).tolist()
        return Validation(self.samples, loss, right if self._head_name else None, self._bits_per_byte(loss))

    def _batch(self, samples: np.ndarray) -> tuple[Batch, int]:
        """Return this data rank's part of the samples, and how many count.

        A rank without any gets one that does not: where layers communicate, all ranks must run.
        """
        mesh, dtype = self.engine.context.mesh, weight_dtype(self.work.run.precision)
        mine = np.array_split(samples, mesh.size("dp"))[mesh.rank("dp")]
        indices = mine if len(mine) else samples[:1]
        # the index is the position as well, so noise is the same at every evaluation
        batch = self.dataset.collate(indices, positions=indices, seed=self.work.run.seed).to(mesh.device)
        batch = Batch(tuple(in_dtype(x, dtype) for x in batch.inputs), in_dtype(batch.targets, dtype))
        return batch, len(mine)

    def _whole(self, batch: Batch) -> Tensor | None:
        return self.engine.model(*batch.inputs, targets=batch.targets)

    @cached_property
    def _head_name(self) -> str | None:
        """The output layer of a classifier, if it is called as head(x, targets): its answers are counted."""
        config, (_, last) = self.work.model_config, self.work.spec.ends(self.work.model_config)
        if config.task != "classify" or not last:
            return None
        head = self.work.new_model().get_submodule(last[-1])
        return last[-1] if len(inspect.signature(head.forward).parameters) == 2 else None

    def _head(self, part: nn.Module) -> nn.Module | None:
        """Return the output layer where it is in this part: a V-shaped pipeline's rank holds the last stage last."""
        return dict(part.named_modules()).get(self._head_name) if self._head_name else None

    def _bits_per_byte(self, loss: float) -> float | None:
        bytes_per_token = getattr(self.dataset, "bytes_per_token", None)
        return loss / math.log(2) / bytes_per_token if bytes_per_token else None

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        parts = self.engine.parts
        head = self._head(parts[-1])
        if head is None:  # of another stage
            hook: contextlib.AbstractContextManager = contextlib.nullcontext()
        else:
            hook = head.register_forward_hook(self._count_right, prepend=True)  # before DeepSpeed drops its weights
        for part in parts:
            part.eval()
        with hook:
            yield
        for part in parts:
            part.train()
            for module in part.modules():
                if isinstance(module, FSDPModule):  # forward alone leaves parameters gathered
                    module.reshard()

    def _count_right(self, head: nn.Module, inputs: tuple[Tensor, Tensor], loss: Tensor) -> None:
        x, targets = inputs
        self.right = (head.forward(x, None).argmax(-1) == targets).sum()


class Stages:
    """Runs a batch of any size through the stages of a pipeline. Ranks with the last stage return the loss."""

    def __init__(self, engine: Engine) -> None:
        self.context, layout = engine.context, engine.context.layout
        self.group = self.context.mesh.group("pp")
        self.schedule = layout.pipeline
        self.rank = self.context.mesh.rank("pp")
        self.parts = dict(zip(self.schedule.stages_of(self.rank, layout.pp), engine.parts, strict=True))
        self.shapes: dict[int, list[tuple[Tensor, ...]]] = {}  # by rows: what enters each stage

    def __call__(self, batch: Batch) -> Tensor | None:
        """Return the mean loss () of a batch on ranks that hold the last stage, None on others. Collective."""
        last = self.context.layout.stages - 1
        out: tuple[Tensor, ...] = ()
        for stage, part in self.parts.items():
            inputs = batch.inputs if stage == 0 else self._receive(stage, len(batch), out)
            if stage == last:
                return part(*inputs, targets=batch.targets)
            result = part(*inputs)
            out = result if isinstance(result, tuple) else (result,)
            self._send(stage, out)
        return None

    def _owner(self, stage: int) -> int:
        return self.schedule.rank_of(stage, self.context.layout.pp)

    def _send(self, stage: int, out: tuple[Tensor, ...]) -> None:
        receiver = self._owner(stage + 1)
        if receiver != self.rank:
            for tensor in out:
                dist.send(tensor.contiguous(), group=self.group, group_dst=receiver)

    def _receive(self, stage: int, rows: int, here: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what the stage before gave: from its rank, or from here."""
        sender = self._owner(stage - 1)
        if sender == self.rank:
            return here
        if rows not in self.shapes:
            division = replace(self.context.division, micro_batch_size=rows)
            self.shapes[rows] = boundary_shapes(replace(self.context, division=division))
        received = tuple(torch.empty_like(x, device=self.context.device) for x in self.shapes[rows][stage])
        for tensor in received:
            dist.recv(tensor, group=self.group, group_src=sender)
        return received
