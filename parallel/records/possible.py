"""Which numbers a column of a row can hold: no rate, size or count is negative, infinite or no number."""

import math

DIVERGES = frozenset(  # what a run that diverged may have: infinite, or no number
    (
        "loss_first", "loss_last", "loss_difference_max", "grad_norm_last", "grad_norm_difference_max",
        "parameter_difference_max",
    )
)  # fmt: skip
BELOW_ZERO = frozenset(  # log-densities are losses that fall below zero; times and shares of a difference may, a little
    (
        "loss_first", "loss_last", "until_loss", "gpu_temperature_mean_c", "gpu_temperature_max_c",
        "bubble_share", "recovery_s", "slowest_behind_s", "wall_s",
    )
)  # fmt: skip


def check_possible(value: float, name: str) -> None:
    """Check a number of a column. Raises: ValueError for one that the column cannot hold."""
    if name not in DIVERGES and not math.isfinite(value):
        raise ValueError("a finite number is needed; an empty cell is unknown")
    if name not in BELOW_ZERO and value < 0:
        raise ValueError("a number from 0 is needed; an empty cell is unknown")
