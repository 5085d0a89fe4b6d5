"""The loops of `paralab peers --model own`: one module trained through paralab, Accelerate and Lightning Fabric.

Each is written as the documentation of its library shows, and yields the loss of the global batch after every step:
what passes between two losses is a step, the batch and the loss included. All clip the gradient, as a program does, and
use torch's AdamW as constructed by default.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from paralab.benchmarks.own_module import SIZES, Block, Llama, loader, loss_of, make
from paralab.benchmarks.variants import package_of_fabric
from paralab.errors import RankError
from paralab.library.parallelize import parallelize
from paralab.library.world import join
from paralab.processes.rank import Rank

if TYPE_CHECKING:
    from paralab.benchmarks.peers import PeersConfig


@dataclass(frozen=True)
class Training:
    """What every loop is given. make: returns the model, with the same values in every process.

    loader: batch size -> the loader of that many samples a batch, in the same order in every process. batch_size: of
    the global batch. clip_norm: None where nothing is clipped.
    """

    make: Callable[[], Llama]
    loader: Callable[[int], DataLoader]
    batch_size: int
    learning_rate: float
    clip_norm: float | None

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """Return the optimizer of all loops over these parameters."""
        return torch.optim.AdamW(parameters, lr=self.learning_rate)


def ours(training: Training, *, layout: str) -> Iterator[float]:
    """Train under a layout of paralab."""
    with join() as world:
        trainer = parallelize(
            training.make,
            layout,
            world=world,
            loss=loss_of,
            optimizer=training.optimizer,
            clip_norm=training.clip_norm,
        )
        for inputs, targets in trainer.shard(training.loader(training.batch_size)):
            yield trainer.step(inputs, targets).loss


def accelerate(training: Training, *, sharded: bool) -> Iterator[float]:
    """Train with Accelerate: DistributedDataParallel, or FSDP2 with each block a unit."""
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState

    on_cpu = not torch.cuda.is_available()
    if on_cpu and sharded:  # told that this is a CPU, it runs DDP whatever is requested (paralab.engines.accelerate)
        PartialState(backend="gloo").distributed_type = DistributedType.MULTI_GPU

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[Block.__name__],
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(
        cpu=on_cpu and not sharded,
        fsdp_plugin=plugin if sharded else None,
    )
    model = training.make()
    model, optimizer, loader = accelerator.prepare(
        model, training.optimizer(model.parameters()), training.loader(training.batch_size // accelerator.num_processes)
    )
    _check_kind(model, sharded=sharded)
    for inputs, targets in loader:
        loss = loss_of(model(inputs), targets)
        accelerator.backward(loss)
        if training.clip_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield accelerator.reduce(loss.detach(), "mean").item()


def fabric(training: Training, *, sharded: bool) -> Iterator[float]:
    """Train with Lightning Fabric: DistributedDataParallel, or torch's FSDP2 by its ModelParallelStrategy.

    Its strategy "fsdp" runs on GPUs alone.
    """
    package = package_of_fabric()
    assert package is not None
    strategies, ranks = import_module(f"{package}.strategies"), Rank.from_env().world_size
    fabric = import_module(package).Fabric(
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=ranks,
        strategy=strategies.ModelParallelStrategy(_shard, data_parallel_size=ranks, tensor_parallel_size=1)
        if sharded
        else "ddp",
    )
    fabric.launch()
    model = fabric.setup_module(training.make())
    _check_kind(model._forward_module, sharded=sharded)
    optimizer = fabric.setup_optimizers(training.optimizer(model.parameters()))
    loader = fabric.setup_dataloaders(training.loader(training.batch_size // fabric.world_size))
    for inputs, targets in loader:
        loss = loss_of(model(inputs), targets)
        fabric.backward(loss)
        if training.clip_norm is not None:
            fabric.clip_gradients(model, optimizer, max_norm=training.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield fabric.all_reduce(loss.detach(), reduce_op="mean").item()


def _shard(model: Llama, mesh: Any) -> nn.Module:
    for part in (*model.layers, model):
        fully_shard(part, mesh=mesh["data_parallel"])
    return model


def _check_kind(model: nn.Module, *, sharded: bool) -> None:
    if not isinstance(model, FSDPModule if sharded else DistributedDataParallel):
        raise RankError(f"{'FSDP2' if sharded else 'DDP'} was requested, and the model became {type(model).__name__}")


LOOPS = {
    "ours ddp": partial(ours, layout="ddp"),
    "Accelerate DDP": partial(accelerate, sharded=False),
    "Fabric DDP": partial(fabric, sharded=False),
    "ours zero3": partial(ours, layout="zero3"),
    "Accelerate FSDP2": partial(accelerate, sharded=True),
    "Fabric FSDP2": partial(fabric, sharded=True),
}


def measure(variant: str, config: "PeersConfig") -> dict[str, Any]:
    """Train one variant on this rank. Return the median seconds of a step after warm-up, and the loss of every step."""
    assert config.size is not None and config.global_batch_size is not None
    size, batch, steps = SIZES[config.size], config.global_batch_size, config.warmup + config.steps
    training = Training(
        lambda: make(size, config.seed),
        lambda rows: loader(size, count=batch * steps, batch_size=rows, seed=config.seed),
        batch,
        config.learning_rate,
        config.clip_norm,
    )
    losses, times, start = [], [], time.perf_counter()
    for loss in LOOPS[variant](training):
        now = time.perf_counter()
        losses.append(loss)
        times.append(now - start)
        start = now
    return {"step_s": statistics.median(times[config.warmup :]), "losses": losses}
