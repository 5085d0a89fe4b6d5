"""What `paralab.plan` prints, and what it says of a module that cannot be looked at without values."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab import plan

BATCH = torch.zeros(8, 4), torch.zeros(8, dtype=torch.int64)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if x.sum() > 0 else self.other(x)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 4, 4))

    def forward(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        return (torch.einsum("th,tkhi->tki", tokens, self.weight[chosen]) * weights[..., None]).sum(1)


class ChoosingThree(nn.Module):
    """Experts that are called as those of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = Experts()
        self.score, self.head = nn.Linear(4, 6), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.score(x).topk(3)
        return self.head(self.experts(x, chosen, weights))


def test_a_token_travels_once_to_each_expert_that_it_goes_to() -> None:
    table = plan(ChoosingThree, 4, example=BATCH, loss=F.cross_entropy, experts="experts")
    sent = next(row.sent_bytes for row in table if row.strategy == "expert")
    tokens, trips, hidden = 8 // 4, 3, 4 * 4  # of a rank; there, back, and one of gradients (samples get none); bytes
    assert sent is not None and sent["ep"] == (6 * 8 + trips * tokens * 3 * hidden) / 2


def test_the_table_fits_a_terminal_and_has_a_row_for_every_strategy() -> None:
    made = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    table = plan(made, 2, example=BATCH, loss=F.cross_entropy)
    shown = {row.strategy: row for row in table}
    assert max(map(len, str(table).splitlines())) <= 80
    # weight, gradient and two moments in fp32, and AdamW's count of steps for each of the four tensors
    assert shown["ddp"].state_bytes == 16 * (4 * 8 + 8 + 8 * 3 + 3) + 4 * 4
    assert shown["zero3"].state_bytes < shown["zero1"].state_bytes < shown["ddp"].state_bytes
    assert (
        'give tensor={"0": "column", "2": "row"}' in shown["tensor"].why_not and "blocks" in shown["pipeline"].why_not
    )


def test_a_module_that_branches_on_its_data_is_one_line() -> None:
    rows = {row.strategy: row for row in plan(Branching, 2, example=BATCH, loss=F.cross_entropy)}
    assert "without values fails" in rows["ddp"].why_not and "\n" not in rows["ddp"].why_not
