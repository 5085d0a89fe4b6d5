"""How one training step is divided over processes: layouts, schedules, the cut of the batch, and named strategies."""

from parallel.layout.division import Division
from parallel.layout.layout import MOST_RANKS, Layout
from parallel.layout.schedules import SCHEDULES, Schedule

__all__ = ["MOST_RANKS", "SCHEDULES", "Division", "Layout", "Schedule"]
