"""Time, graph breaks and recompilations of torch.compile are those that were made to happen."""

import time

import torch

from paralab.measure.compiling import Compiled, compiled


def test_breaks_and_recompilations_are_counted() -> None:
    def doubled(x: torch.Tensor) -> torch.Tensor:
        x = x * 2
        torch._dynamo.graph_break()
        return x + 1

    before, began_s = compiled("default"), time.perf_counter()
    run = torch.compile(doubled, backend="eager", dynamic=False)
    run(torch.ones(3))
    once = compiled("default").since(before)
    assert 0 < once.seconds <= time.perf_counter() - began_s
    assert (once.graph_breaks, once.recompiles) == (1, 0)
    run(torch.ones(3))
    assert compiled("default").since(before) == once
    run(torch.ones(4))  # both halves again, and the break with them
    assert (compiled("default").since(before).graph_breaks, compiled("default").since(before).recompiles) == (2, 2)


def test_nothing_is_compiled_where_nothing_is_requested() -> None:
    assert compiled("none") == Compiled()
