"""What is named as the first difference, of pairs made by hand. What real layouts do wrong is in tests/dist."""

from paralab.parity.beside import FORWARD, Pair
from paralab.parity.first import _wrong
from paralab.parity.listening import Spot


def pair(place: int, spot: Spot, gap: float) -> Pair:
    return Pair(FORWARD, place, spot, "forward", rank=1, gap=gap, size=1.0, micro_batch=0)


def test_an_input_that_a_module_does_not_use_is_not_the_first_difference() -> None:
    angles, block = Spot("input", "angles"), Spot("input", "block")
    used = [pair(2, block, 0.5), pair(3, Spot("output", "block"), 0.25)]
    for gap, first in ((0.0, block), (1e-30, angles)):
        pairs = [pair(0, angles, 0.5), pair(1, Spot("output", "angles"), gap), *used]
        assert [wrong.about for wrong, _ in _wrong(pairs, "fp64")] == [first]
