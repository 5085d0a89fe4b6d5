"""The order of the cases in a repeat."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def in_turn(cases: Sequence[T], repeat: int, group: str) -> list[T]:
    """Return the cases in the order of a repeat, which is drawn from its number and the name of the sweep.

    The first repeat goes in the order that was typed, so that the first case is the baseline of a sweep that has no
    other. Which of two cases comes first is a fair coin in each later repeat: whatever the machine does, a case that is
    no slower is as likely to be the slower one of a pair as not, and pairs do not depend on each other.
    """
    return random.Random(f"{group} {repeat}").sample(cases, len(cases)) if repeat else list(cases)
