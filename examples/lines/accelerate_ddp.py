"""Data parallelism with Accelerate."""

import torch
from accelerate import Accelerator
from net import data, loss_of, make
from torch.utils.data import DataLoader

accelerator = Accelerator(cpu=not torch.cuda.is_available())
model = make()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, 16 // accelerator.num_processes))
for inputs, targets in loader:
    loss = loss_of(model(inputs), targets)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    accelerator.print(f"loss {accelerator.reduce(loss.detach(), 'mean').item():.4f}")
