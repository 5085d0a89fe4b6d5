"""How one training step is divided over processes: layouts, schedules, the cut of the batch, and named strategies."""

from parallel.layout.division import Division
from parallel.layout.layout import DEGREES, MOST_RANKS, Layout
from parallel.layout.schedules import SCHEDULES, Schedule

__all__ = ["DEGREES", "MOST_RANKS", "SCHEDULES", "Division", "Layout", "Schedule"]
