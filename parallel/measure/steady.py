"""Cut the warm-up from a series of step times by a fixed rule, and test whether the rest is steady.

The rule is MSER (White 1997, "An effective truncation heuristic for bias reduction in simulation output"; its
answers in the second half are not trusted, as in Hoad, Robinson and Davies 2010): drop the first d steps, where d
makes the standard error of the mean of the others smallest. MSER alone is upset by one late outlier, so times are
first clipped to 3 robust standard deviations about the median of the second half.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma, log, sqrt

import numpy as np

RULE = "mser, clipped at 3 mad, at most half"
_SIGMA_PER_MAD = 1.4826  # of a normal distribution
_CLIP_SIGMAS = 3.0
_LEAST_SIGMA = 0.002  # of the median: clocks and scheduling are no finer, and equal times must not clip to nothing
_LEAST_STEPS = 8  # fewer cannot show a drift
_DRIFT = 0.02  # of the median, between the thirds: what a comparison of runs may still overlook
_NOISE_ERRORS = 4.0


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """The steady part of a run's step times. Names shared with `RunRecord` mean the same.

    p50_low, p50_high: 95% interval of the median from order statistics, None under six steps. It treats steps as
    independent, which they hardly are: compare runs, not steps.
    """

    warmup_steps: int
    warmup_rule: str
    measured_steps: int
    steady: bool
    step_time_p50_s: float
    step_time_p50_low_s: float | None
    step_time_p50_high_s: float | None
    step_time_p95_s: float
    step_time_p99_s: float
    step_time_mad_s: float  # median absolute deviation from the median, not scaled


def summarise(step_times_s: Sequence[float] | np.ndarray) -> StepTimes:
    """Cut the warm-up and describe what is left.

    Raises: ValueError for an empty series or times that are not finite.
    """
    times = np.asarray(step_times_s, dtype=np.float64)
    if times.size == 0 or not np.isfinite(times).all():
        finite = int(np.isfinite(times).sum())
        raise ValueError(f"{times.size} step times, {finite} finite: at least one is needed, and all finite")
    warmup = warmup_steps(times)
    kept = times[warmup:]
    low, high = median_interval(kept)
    p50, p95, p99 = (float(value) for value in np.percentile(kept, (50, 95, 99)))
    return StepTimes(
        warmup_steps=warmup,
        warmup_rule=RULE,
        measured_steps=kept.size,
        steady=is_steady(kept),
        step_time_p50_s=p50,
        step_time_p50_low_s=low,
        step_time_p50_high_s=high,
        step_time_p95_s=p95,
        step_time_p99_s=p99,
        step_time_mad_s=_mad(kept),
    )


def warmup_steps(times: np.ndarray) -> int:
    """Return how many steps to drop, at most half of the series."""
    tail = times[times.size // 2 :]
    middle = np.median(tail)
    reach = _CLIP_SIGMAS * max(_SIGMA_PER_MAD * _mad(tail), _LEAST_SIGMA * middle)
    clipped = np.clip(times, middle - reach, middle + reach)
    drops = range(times.size // 2 + 1)
    # Squared standard error of the mean of n values: their sum of squared deviations over n^2.
    errors = [np.square(clipped[d:] - clipped[d:].mean()).sum() / (times.size - d) ** 2 for d in drops]
    return int(np.argmin(errors))


def is_steady(kept: np.ndarray) -> bool:
    """Return whether the medians of the three thirds agree within 2%, or within what noise explains.

    False for fewer than 8 steps. Noise explains 4 standard errors of a difference of medians; that of the median
    of n normal values is 1.2533 sigma / sqrt(n).
    """
    if kept.size < _LEAST_STEPS:
        return False
    thirds = np.array_split(kept, 3)
    medians = [float(np.median(third)) for third in thirds]
    residuals = np.concatenate([third - median for third, median in zip(thirds, medians, strict=True)])
    # Each third gave up one degree of freedom to its median.
    sigma = _SIGMA_PER_MAD * float(np.median(np.abs(residuals))) * sqrt(kept.size / (kept.size - 3))
    noise = _NOISE_ERRORS * 1.2533 * sigma * sqrt(2 / (kept.size / 3))
    return max(medians) - min(medians) <= max(_DRIFT * float(np.median(kept)), noise)


def median_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Return the shortest symmetric pair of order statistics that holds the median with this confidence at least.

    Distribution-free (David and Nagaraja 2003, Order Statistics, section 7.1). (None, None) when the sample is
    too small for any pair: 2 / 2^n > 1 - confidence.
    """
    n, ordered = values.size, np.sort(values)
    below, rank = 0.0, None  # probability that at most k values fall below the median
    for k in range(n // 2):
        below += exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) - n * log(2))
        if 2 * below > 1 - confidence:
            break
        rank = k
    return (None, None) if rank is None else (float(ordered[rank]), float(ordered[n - 1 - rank]))


def _mad(values: np.ndarray) -> float:
    return float(np.median(np.abs(values - np.median(values))))
