"""Search the layouts of a training: every legal one is predicted, and the fastest that fit come first.

Degrees are the outer loop, and all that can be chosen beside them (ZeRO stage, micro-batch, recomputation, schedule,
sequence parallelism) is one array: hundreds of thousands of layouts a second.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from paralab.axes.case import Case
from paralab.axes.costs import Machine, Plan
from paralab.errors import LayoutError
from paralab.planning import checked, steptime
from paralab.planning.breakdown import gib_by_category
from paralab.planning.candidates import CHOSEN, parts_of
from paralab.planning.cases import Raw
from paralab.planning.constants import shipped
from paralab.planning.hardware import DEFAULT_GPU, Device
from paralab.planning.predict import Prediction, evaluate
from paralab.planning.ranking import ranked
from paralab.planning.settle import Settled, arrays

_TOKENS = 1 << 19  # of a step: half a million, the smallest of Brown et al. 2020, table 2.1
_SAMPLES = 256  # of a step of images: He et al. 2016, section 3.4


@dataclass(frozen=True)
class Found:
    """Layouts of one training. settled: one of them, of which all others differ in what is chosen only.

    columns: what was chosen, an array (layouts,) by column. prediction: of each.
    """

    settled: Settled
    columns: Mapping[str, np.ndarray]
    prediction: Prediction
    case: Case
    machine: Machine

    def __len__(self) -> int:
        return len(self.columns["dp"])

    @cached_property
    def memory_gib(self) -> Mapping[str, np.ndarray]:
        """GiB of the fullest device by category, each an array (layouts,)."""
        return gib_by_category(self.case, self.machine)

    @cached_property
    def causes_s(self) -> Mapping[str, np.ndarray]:
        """Seconds of a step by what they go into, each an array (layouts,)."""
        plan = Plan(self.case, self.machine, shipped())
        return steptime.causes(plan, steptime.step(plan))

    @property
    def checked_range(self) -> tuple[float, float]:
        """The ratios of measured to predicted step time between which `checked.SHARE` of what was checked lies."""
        case, arch = self.settled.case, self.settled.device.arch
        return checked.step_time_range("images" if case.is_counted else arch)

    @property
    def caveat(self) -> str:
        """How far off such predictions were where they were checked."""
        if self.settled.case.is_counted:
            return checked.sentence_of_images()
        device = self.settled.device
        other = "" if checked.is_checked(device.arch) else ". No table is of this generation of devices"
        return checked.sentence() + other

    @cached_property
    def range_s(self) -> tuple[np.ndarray, np.ndarray]:
        """The step times between which `checked.SHARE` of what was checked lies, arrays (layouts,)."""
        low, high = self.checked_range
        return self.prediction.step_time_s * low, self.prediction.step_time_s * high

    @cached_property
    def order(self) -> np.ndarray:
        """The numbers of the layouts that fit, fastest first; of equally fast ones the one that needs least memory."""
        fitting = np.flatnonzero(self.prediction.fits)
        time, memory = self.prediction.step_time_s[fitting], self.prediction.memory_gib[fitting]
        return fitting[np.lexsort((memory, time))]

    @property
    def n_fit(self) -> int:
        """How many layouts fit."""
        return int(np.count_nonzero(self.prediction.fits))

    @cached_property
    def best(self) -> int:
        """The number of the layout that is the answer: of those that fit, the simplest that is about as fast as any.

        Where none fits, of those that need least memory.
        """
        return int(self.ranked(1)[0])

    def ranked(self, most: int) -> np.ndarray:
        """Return the numbers of layouts that fit, fastest first; of those that are alike only the simplest one.

        Where none fits, those that need least memory.
        """
        time, memory = self.prediction.step_time_s, self.prediction.memory_gib
        if self.n_fit:
            return ranked(self.columns, np.flatnonzero(self.prediction.fits), time, memory, most)
        return ranked(self.columns, np.arange(len(self)), memory, time, most)


def search(raw: Raw, own: Mapping[str, Device] | None = None, default_gpu: str = DEFAULT_GPU) -> Found:
    """Predict every legal layout of a training. raw: its columns; those of `CHOSEN` that are there stay as they are.

    Raises: UsageError where a column cannot be; LayoutError where no layout is legal.
    """
    if "n_gpus" not in raw:
        raise LayoutError("n_gpus is empty: say how many GPUs there are")
    raw = {"global_batch_size": default_batch(raw), **raw}
    parts = list(parts_of(raw, own, default_gpu))
    if not parts:
        from paralab.planning import closest

        raise LayoutError(closest.why_none(raw, own, default_gpu))
    settled = parts[0][0]
    columns = {name: np.concatenate([part[1][name] for part in parts]) for name in CHOSEN}
    varying = {name: np.concatenate([part[2][name] for part in parts]) for name in parts[0][2]}
    case = replace(settled.case, **varying)
    (_, machine) = arrays([settled])
    return Found(settled, columns, evaluate(case, machine), case, machine)


def default_batch(raw: Raw) -> int:
    """Return the sequences of a step where none are given: of half a million tokens or more, as many for each GPU."""
    n, length = int(raw["n_gpus"]), int(raw.get("sequence_length", 2048))
    least = _SAMPLES if "counted" in raw else -(-_TOKENS // length)
    return n * max(1, -(-least // n))
