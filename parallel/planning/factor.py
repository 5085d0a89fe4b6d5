"""One factor that corrects predicted step times, from a user's own measured rows, and how the error changes by it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paralab.errors import ConfigError

LEAST_ROWS = 3


@dataclass(frozen=True)
class Factor:
    """What predicted seconds are multiplied by. rows: that it is from.

    before, after: mean error as a share of what was measured, without it, and with one from all other rows.
    """

    value: float
    rows: int
    before: float
    after: float

    @property
    def sentence(self) -> str:
        """What was corrected, for people."""
        return (
            f"step times are multiplied by {self.value:.3g}, from {self.rows} measured rows: their mean error was "
            f"{self.before:.0%}, and is {self.after:.0%} with a factor from the others"
        )


def factor(measured_s: Sequence[float], predicted_s: Sequence[float]) -> Factor:
    """Return the factor whose error in logarithms is least: the geometric mean of measured over predicted seconds.

    Raises: ConfigError for fewer than three rows; ValueError for seconds that are not above 0.
    """
    if len(measured_s) < LEAST_ROWS:
        raise ConfigError(
            f"--calibrate-from has {len(measured_s)} rows that can be predicted: {LEAST_ROWS} or more are needed, "
            "measure some with paralab run or bench"
        )
    logs = [math.log(m / p) for m, p in zip(measured_s, predicted_s, strict=True)]
    total, n = sum(logs), len(logs)
    others = [math.exp((total - one) / (n - 1)) for one in logs]
    after = [abs(p * f / m - 1) for m, p, f in zip(measured_s, predicted_s, others, strict=True)]
    before = [abs(p / m - 1) for m, p in zip(measured_s, predicted_s, strict=True)]
    return Factor(math.exp(total / n), n, sum(before) / n, sum(after) / n)
