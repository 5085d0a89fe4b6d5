"""How one training step is divided over processes: layouts, schedules, the cut of the batch, and named strategies."""

from paralab.layout.division import Division, common_divisors
from paralab.layout.layout import MOST_RANKS, Layout
from paralab.layout.schedules import SCHEDULES, Schedule, layers_of_stages

__all__ = ["MOST_RANKS", "SCHEDULES", "Division", "Layout", "Schedule", "common_divisors", "layers_of_stages"]
