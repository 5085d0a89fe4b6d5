"""Data parallelism with Lightning Fabric."""

import torch
from lightning_fabric import Fabric
from net import data, loss_of, make
from torch.utils.data import DataLoader

fabric = Fabric(devices=2, strategy="ddp")
fabric.launch()
model = fabric.setup_module(make())
optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=1e-3))
loader = fabric.setup_dataloaders(DataLoader(data, 16 // fabric.world_size))
for inputs, targets in loader:
    loss = loss_of(model(inputs), targets)
    fabric.backward(loss)
    fabric.clip_gradients(model, optimizer, max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()
    fabric.print(f"loss {fabric.all_reduce(loss.detach(), reduce_op='mean').item():.4f}")
