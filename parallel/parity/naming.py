"""Name the first difference: what it is, on which ranks, and after which collective."""

from torch import nn

from paralab.parity.beside import (
    BACKWARDS,
    BATCH,
    CLIPPED,
    END,
    FORWARD,
    GRADIENT,
    NUMBER,
    SHARED,
    START,
    UPDATED,
    Beside,
    Pair,
)
from paralab.parity.listening import BACKWARD, Spot, finished
from paralab.parity.notes import Notes


def say(wrong: list[tuple[Pair, float]], beside: Beside, notes: list[Notes], pairs: list[Pair], when: str) -> str:
    """Return a sentence about the first difference.

    wrong: what differs there, of each rank and micro-batch, with its share of the size. notes: of all ranks. pairs: all
    that was compared. when: the step.
    """
    first = wrong[0][0]
    name, why = _Teller(first, beside, notes, pairs).tell()
    ranks = sorted({pair.rank for pair, _ in wrong})
    micro_batches = sorted({pair.micro_batch for pair, _ in wrong if pair.micro_batch is not None})
    share = max(ratio for _, ratio in wrong)
    chunks = beside.chunks
    if micro_batches and chunks > 1 and len(micro_batches) < chunks:
        when = f"micro-batch {micro_batches[0] + 1} of {chunks}, {when}"
    return f"first difference: {name}{_on(ranks, len(notes))}{why}: {share:.1g} of its size ({when})"


def _on(ranks: list[int], of: int) -> str:
    if of == 1:
        return ""
    if len(ranks) == 1:
        return f" on rank {ranks[0]}"
    few = [str(rank) for rank in ranks[:4]] + ([f"{len(ranks) - 4} more"] if len(ranks) > 4 else [])
    return f" on ranks {', '.join(few[:-1])} and {few[-1]}"


class _Teller:
    """What there is to say of one difference. Each way to tell returns its name, and what comes before it."""

    def __init__(self, pair: Pair, beside: Beside, notes: list[Notes], pairs: list[Pair]) -> None:
        self.pair, self.beside, self.sends, self.pairs = pair, beside, beside.sends, pairs
        self.notes = notes[pair.rank]
        self.about = pair.about

    def tell(self) -> tuple[str, str]:
        """Return the name of what differs, and after which collective or with what else it does."""
        tellers = {
            START: lambda: (f"the value of {self.about} before the step", ""),
            BATCH: lambda: ("the rows of the batch", ""),
            FORWARD: lambda: self._module(gradient=False),
            BACKWARDS: lambda: self._module(gradient=True),
            GRADIENT: self._gradient,
            NUMBER: lambda: (f"the {self.about}", ", after its all_reduce over all ranks, while every gradient agrees"),
            CLIPPED: lambda: (f"the gradient of {self.about}", ", after it is clipped"),
            UPDATED: lambda: (f"{self.about}", f", after the update by {self._optimizer}"),
            SHARED: lambda: (f"{self.about}", f", after the update{_after(self._gathers(self.about), ' and the ')}"),
            END: lambda: (f"the buffer {self.about}", ", after the step"),
        }
        return tellers[self.pair.phase]()

    @property
    def _optimizer(self) -> str:
        return type(self.beside.engine.optimizer).__name__

    def _gathers(self, name: object) -> list[str]:
        whole = self.beside.parameters
        name = str(name)
        shape = tuple(whole[self.beside.tied.get(name, name)].shape)
        return self.sends.gathers(name, shape)

    def _module(self, *, gradient: bool) -> tuple[str, str]:
        spot = self.about
        assert isinstance(spot, Spot)
        name = f"the {spot.side} of {spot.module}" if spot.module else "the loss"
        if spot.leaf:
            name += f" (tensor {spot.leaf + 1})"
        if spot.call:
            name += f" (call {spot.call + 1})"
        name = f"the gradient of {name}" if gradient else name
        if handed := self.sends.of_boundary(spot, gradient):
            return name, f", as it comes from the stage {'after' if gradient else 'before'} ({handed[0]})"
        module = self.beside.engine.parts[0].get_submodule(spot.module)
        if calls := self.sends.of_module(spot, gradient, module, self._input_shape(spot)):
            return name, _after(calls)
        if not gradient and spot.side == "output" and (gathered := self._gathered(spot.module, module)):
            return name, f", after the {' and the '.join(gathered)} of its parameters"
        return name, self._neighbour(spot, gradient)

    def _input_shape(self, spot: Spot) -> tuple[int, ...]:
        asked = spot._replace(side="input", leaf=0)
        found = self.notes.heard.get((asked, False, self.pair.micro_batch or 0))
        return found.shape if found is not None else ()

    def _gathered(self, name: str, module: nn.Module) -> list[str]:
        own = [f"{name}.{key}" if name else key for key, _ in module.named_parameters(recurse=False)]
        return [] if self.beside.layout.zero < 2 else [said for x in own[:1] for said in self._gathers(x)]

    def _neighbour(self, spot: Spot, gradient: bool) -> str:
        """Return what was compared before on this rank and agrees: what differs lies between the two."""
        before = [
            pair
            for pair in self.pairs
            if pair.rank == self.pair.rank and pair.phase == self.pair.phase and pair.place < self.pair.place
        ]
        if not before:
            return ""
        last = max(before, key=lambda pair: pair.place).about
        assert isinstance(last, Spot)
        words = f"the {last.side} of {last.module}" if last.module else "the loss"
        return f", while {'the gradient of ' if gradient else ''}{words} agrees"

    def _gradient(self) -> tuple[str, str]:
        assert isinstance(self.about, tuple)
        moment, name = str(self.about[0]), str(self.about[1])
        said = f"the gradient of {name}"
        shape = tuple(self.beside.parameters[self.beside.tied.get(name, name)].shape)
        if moment != BACKWARD:
            axis = next(axis for axis in self.notes.finishes if finished(axis) == moment)
            calls = self.sends.reductions(name, shape, axis=axis)
            return said, _after(calls) or f", after gradients are completed over {axis}"
        late = {call for axis in self.notes.finishes for call in self.sends.reductions(name, shape, axis=axis)}
        calls = [call for call in self.sends.reductions(name, shape) if call not in late]
        return said, _after(calls) or ", as backward leaves it, before any collective"


def _after(calls: list[str], before: str = ", after its ") -> str:
    return f"{before}{' and '.join(calls)}" if calls else ""
