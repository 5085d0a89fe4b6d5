"""Prove a training loop that paralab has no part in: here torch's FSDP2, against the same steps in one process.

torchrun --nproc-per-node 2 examples/prove_only.py
"""

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import paralab

torch.manual_seed(0)
features, labels = torch.randn(4, 32, 20).double(), torch.randint(0, 5, (4, 32))


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.GELU(), nn.Linear(64, 5)).double()


def alone(model: nn.Module) -> list[float]:
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for x, y in zip(features, labels, strict=True):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def sharded(model: nn.Module) -> list[float]:
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    fully_shard(model)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for x, y in zip(features, labels, strict=True):
        loss = F.cross_entropy(model(x.chunk(ranks)[rank]), y.chunk(ranks)[rank])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.distributed.all_reduce(loss)
        losses.append(loss.item() / ranks)
    return losses


def main() -> None:
    with paralab.join() as world:
        train = sharded if world.size > 1 else alone
        world.print(paralab.prove_training(train, alone, model=make_model, world=world))


if __name__ == "__main__":
    main()
