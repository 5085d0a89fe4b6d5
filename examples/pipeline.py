"""Pipeline stages of one's own model: its blocks are divided, and the program says what runs before and after them.

torchrun --nproc-per-node 2 examples/pipeline.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paralab


class Net(nn.Module):
    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(100, width), nn.Embedding(8, width)
        layers = [nn.TransformerEncoderLayer(width, 4, 64, 0.0, batch_first=True) for _ in range(depth)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(width, 100)

    def forward(self, tokens: Tensor) -> Tensor:
        x = before(self, tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def before(net: Net, tokens: Tensor) -> Tensor:
    return net.tokens(tokens) + net.positions.weight[: tokens.shape[1]]


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 100, (32, 9))
    batch = (tokens[:, :-1], tokens[:, 1:])
    with paralab.join() as world:
        trainer = paralab.parallelize(
            Net,
            f"pp{world.size}/1f1b/mb4",
            world=world,
            loss=loss,
            pipeline=paralab.Pipeline(before=before, after="head"),
            example=batch,
        )
        world.print(trainer.layout, paralab.prove(trainer, [batch]))


if __name__ == "__main__":
    main()
