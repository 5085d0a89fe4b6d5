"""Which mesh axis a process group belongs to."""

from collections.abc import Mapping

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import GroupName, _resolve_process_group


class AxisNames:
    """The axes of a mesh by their groups. axes: mesh axis -> its process group on this rank.

    A group is known by its name, else by its ranks, so that an axis over every rank also stands for the default group.
    Others are "world" or "other".
    """

    def __init__(self, axes: Mapping[str, ProcessGroup]) -> None:
        self._by_name = {group.group_name: axis for axis, group in axes.items()}
        self._by_ranks = {tuple(dist.get_process_group_ranks(group)): axis for axis, group in axes.items()}

    def of(self, group: ProcessGroup | str) -> str:
        """Return the axis of a group, or of one with that name."""
        if isinstance(group, str):
            group = _resolve_process_group(GroupName(group))
        ranks = tuple(dist.get_process_group_ranks(group))
        known = self._by_name.get(group.group_name) or self._by_ranks.get(ranks)
        return known or ("world" if len(ranks) == dist.get_world_size() else "other")
