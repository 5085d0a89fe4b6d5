"""Tensor parallelism with paralab."""

import torch
from net import data, loss_of, make
from torch.utils.data import DataLoader

import paralab

with paralab.join() as world:
    trainer = paralab.parallelize(
        make,
        "tp2",
        world=world,
        loss=loss_of,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        clip_norm=1.0,
        tensor={"layers.*.up": "column", "layers.*.down": "row"},
    )
    for inputs, targets in trainer.shard(DataLoader(data, 16)):
        world.print(f"loss {trainer.step(inputs, targets).loss:.4f}")
