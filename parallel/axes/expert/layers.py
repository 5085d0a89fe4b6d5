"""Expert parallelism: each rank holds some experts of every layer, and rows travel to them and back.

A module of experts is called with rows that are sorted by expert, and with how many there are of each. Before it runs,
ranks tell each other these numbers and exchange the rows, of different numbers between any two of them; after it, the
rows go back to where they came from, in the order that they had. One that is called as those of transformers are, with
tokens, the experts of each and their weights, gets rows of one expert with a weight of one; the weights wait at home.
"""

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from paralab.axes.pieces import distribute, run_locally
from paralab.models.routing import choices, sizes_of
from paralab.processes.mesh import Mesh


def divide(module: nn.Module, *, mesh: Mesh) -> None:
    """Give this rank its share of the experts of a module, in place, and let rows travel to all of them."""
    count = next(module.parameters()).shape[0]
    trips = _TripsOfTokens(mesh.group("ep"), count) if takes_tokens(module) else _Trips(mesh.group("ep"))
    module.register_forward_pre_hook(trips.there)
    if any(isinstance(parameter, DTensor) for parameter in module.parameters(recurse=False)):
        _divide_parts(module, mesh)
    else:
        distribute(module, {name: 0 for name, _ in module.named_parameters(recurse=False)}, mesh["ep"])
        run_locally(module)
    # Before the tensor axis sums up: what it sends is of this rank's own rows then, whose number no router decides.
    module.register_forward_hook(trips.back, prepend=True)
    if isinstance(getattr(module, "num_experts", None), int):  # by which modules of transformers count theirs
        vars(module)["num_experts"] = count // mesh.size("ep")


def takes_tokens(module: nn.Module) -> bool:
    """Return whether experts are called with tokens, the experts of each and their weights, as in transformers."""
    return len(inspect.signature(module.forward).parameters) == 3


def note_choices(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Note in a module that `takes_tokens` to how many experts a token goes: `choices`. inputs: those of its call."""
    vars(module)["choices"] = inputs[1].shape[-1]


def _divide_parts(module: nn.Module, mesh: Mesh) -> None:
    """Keep this rank's experts of those that the tensor axis has divided by their width, and has run locally."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        assert isinstance(parameter, DTensor), "the tensor axis divides all of an expert, or nothing"
        mine = parameter.to_local().chunk(mesh.size("ep"))[mesh.rank("ep")]
        placements = (Shard(0), *parameter.placements)
        both = DTensor.from_local(mine, mesh["ep", "tp"], placements, run_check=False)
        module.register_parameter(name, nn.Parameter(both, requires_grad=parameter.requires_grad))


class _Trips:
    """The way of rows to their experts and back, of one module."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.ranks = group, group.size()
        self.order = torch.empty(0, dtype=torch.int64)  # of rows that arrived: by expert
        self.sent: list[int] = []  # rows to each rank
        self.received: list[int] = []  # rows from each rank

    def there(self, module: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Take rows (rows, hidden) by expert and counts (experts,) int64; return those of this rank's experts."""
        rows, counts = inputs
        each = torch.empty_like(counts)
        dist.all_to_all_single(each, counts, group=self.group)
        # without values, as many arrive as leave
        self.sent = _by_rank(sizes_of(counts, len(rows)), self.ranks)
        self.received = _by_rank(sizes_of(each, len(rows)), self.ranks)
        arrived = _Exchange.apply(rows, self.sent, self.received, self.group)
        each = each.view(self.ranks, -1)  # (ranks, experts here)
        experts = torch.arange(each.shape[1], device=each.device).repeat(self.ranks)
        self.order = experts.repeat_interleave(each.flatten(), output_size=len(arrived)).argsort(stable=True)
        return arrived[self.order], each.sum(dim=0)

    def back(self, module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        """Take rows (rows here, hidden) by expert; return those of this rank's tokens, as they left."""
        by_rank = torch.zeros_like(out).index_copy(0, self.order, out)
        return _Exchange.apply(by_rank, self.received, self.sent, self.group)


class _TripsOfTokens(_Trips):
    """The same for experts that are called with tokens (tokens, hidden), their experts and weights (tokens, top_k)."""

    def __init__(self, group: dist.ProcessGroup, experts: int) -> None:
        super().__init__(group)
        self.experts = experts  # of all ranks
        self.by_expert = self.weights = torch.empty(0)  # of the last call

    def there(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return rows (rows, hidden) of this rank's experts, each with one expert and a weight of one (rows, 1)."""
        tokens, chosen, self.weights = inputs
        self.by_expert = chosen.flatten().argsort(stable=True)
        rows = tokens[self.by_expert // chosen.shape[1]]
        arrived, counts = super().there(module, (rows, choices(chosen.flatten(), self.experts)))
        which = torch.arange(len(counts), device=counts.device)
        which = which.repeat_interleave(counts, output_size=len(arrived))[:, None]
        return arrived, which, self.weights.new_ones(len(arrived), 1)

    def back(self, module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        """Return the sum of what its experts make of each token (tokens, hidden), by their weights."""
        rows = super().back(module, inputs, out)
        by_token = torch.zeros_like(rows).index_copy(0, self.by_expert, rows)
        return (by_token.unflatten(0, (-1, self.weights.shape[1])) * self.weights[..., None]).sum(dim=1).to(out.dtype)


def _by_rank(sizes: list[int], ranks: int) -> list[int]:
    """Return how many rows are of the experts of each rank. sizes: of each expert, those of a rank side by side."""
    here = len(sizes) // ranks
    return [sum(sizes[rank * here : (rank + 1) * here]) for rank in range(ranks)]


class _Exchange(torch.autograd.Function):
    """Send the first rows to rank 0 of a group, the next to rank 1, and so on; gradients travel back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchanged(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchanged(grad, ctx.received, ctx.sent, ctx.group), None, None, None


def _exchanged(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    out = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
    return out
