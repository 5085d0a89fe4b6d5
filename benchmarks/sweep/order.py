"""The order of the cases in a repeat."""

import random
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

T = TypeVar("T")
FIRST = 6  # repeats: as many pairs as a test takes at least
_DRAWS = 100  # of which the best is taken, where there are so many cases that none is without fault


def in_turn(cases: Sequence[T], repeat: int, group: str) -> list[T]:
    """Return the cases in the order of a repeat, which is drawn from its number and the name of the sweep.

    The first repeat goes in the order that was typed, so that the first case is the baseline of a sweep that has no
    other. Which of two cases comes first is a fair coin in each later repeat: whatever the machine does, a case that is
    no slower is as likely to be the slower one of a pair as not, and pairs do not depend on each other. Draws in which
    one of two cases is first in each of the first repeats are drawn again: their runs would be no pairs.
    """
    return [cases[i] for i in _order(len(cases), repeat, group, _draw(len(cases), group))]


def _order(count: int, repeat: int, group: str, draw: int) -> list[int]:
    numbers = range(count)
    return random.Random(f"{group} {repeat} {draw}").sample(numbers, count) if repeat else list(numbers)


@cache
def _draw(count: int, group: str) -> int:
    """Return the number of the first draw in which the fewest cases are always before the same other one."""
    return min(range(_DRAWS), key=lambda draw: _one_way(count, group, draw))


def _one_way(count: int, group: str, draw: int) -> int:
    """Return how many pairs of cases have one order in all repeats that a test in pairs needs at least."""
    orders = [_order(count, repeat, group, draw) for repeat in range(FIRST)]
    places = [{case: place for place, case in enumerate(order)} for order in orders]
    pairs = [(one, other) for one in range(count) for other in range(one)]
    return sum(all(place[other] < place[one] for place in places) for one, other in pairs)
