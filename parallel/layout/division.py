"""Divide the global batch into micro-batches for the data ranks. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Division:
    """How a global batch is cut: contiguous (accumulation, micro_batches, dp, micro_batch_size) blocks.

    The order puts `dp` inside the micro-batch, so that the samples which all data ranks see together are a
    contiguous slice of the global batch: batch statistics over them are those of one process.
    """

    accumulation: int
    micro_batches: int
    dp: int
    micro_batch_size: int

    @property
    def global_batch_size(self) -> int:
        return self.accumulation * self.micro_batches * self.dp * self.micro_batch_size

    @property
    def chunks(self) -> int:
        """Forward passes of one rank in one optimizer step."""
        return self.accumulation * self.micro_batches

    def rows_of(self, dp_rank: int) -> list[int]:
        """Return the rows of the global batch that one data rank consumes, in the order it consumes them."""
        size = self.micro_batch_size
        starts = ((chunk * self.dp + dp_rank) * size for chunk in range(self.chunks))
        return [start + i for start in starts for i in range(size)]


def common_divisors(numbers: Iterable[int], *, times: int = 1, most: int = 64) -> list[int]:
    """Return the degrees n up to `most` for which n x times divides every number, in ascending order."""
    wholes = list(numbers)
    return [n for n in range(1, most + 1) if all(whole % (n * times) == 0 for whole in wholes)]
