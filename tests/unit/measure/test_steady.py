import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from paralab.measure import steady

SERIES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60)


def _noise(n: int, seed: int = 0) -> np.ndarray:
    return 1 + 0.03 * np.random.default_rng(seed).standard_normal(n)


@given(SERIES)
@settings(deadline=None)
def test_what_is_kept_is_the_end_of_the_series(times: list[float]) -> None:
    got = steady.summarise(times)
    assert 0 <= got.warmup_steps <= len(times) // 2
    assert got.warmup_steps + got.measured_steps == len(times)
    kept = times[got.warmup_steps :]
    assert got.step_time_p50_s == pytest.approx(np.median(kept))
    assert got.step_time_p50_s <= got.step_time_p95_s <= got.step_time_p99_s <= max(kept)
    if got.step_time_p50_low_s is not None:
        assert min(kept) <= got.step_time_p50_low_s <= got.step_time_p50_s <= got.step_time_p50_high_s <= max(kept)


@given(SERIES, st.sampled_from([2.0**-10, 0.25, 2.0, 1024.0]))
@settings(deadline=None)
def test_the_unit_of_time_does_not_matter(times: list[float], scale: float) -> None:
    # Powers of two scale floating-point numbers exactly.
    one, other = steady.summarise(times), steady.summarise([scale * t for t in times])
    assert (one.warmup_steps, one.steady) == (other.warmup_steps, other.steady)
    assert other.step_time_mad_s == scale * one.step_time_mad_s


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("warm", [[9.0], [5.0, 3.0, 2.0], [30.0, 1.5, 1.5, 1.5, 1.5]])
def test_slow_first_steps_are_cut(seed: int, warm: list[float]) -> None:
    got = steady.summarise([*warm, *_noise(40, seed)])
    assert len(warm) <= got.warmup_steps <= len(warm) + 8
    assert got.steady


def test_one_late_outlier_is_not_warm_up() -> None:
    times = _noise(40)
    times[15] = 50.0
    assert steady.summarise(times).warmup_steps < 15


@pytest.mark.parametrize(
    "times",
    [
        np.linspace(1, 2, 40),
        np.r_[_noise(30), 1.5 * _noise(10)],
        np.r_[_noise(15), 1.5 * _noise(15), _noise(15)],
        np.ones(3),
    ],
    ids=["drift", "step up", "bump", "too short"],
)
def test_series_that_never_settle_are_not_steady(times: np.ndarray) -> None:
    assert not steady.summarise(times).steady


def test_eight_steps_are_enough_to_be_steady_and_seven_are_not() -> None:
    assert [steady.is_steady(np.ones(n)) for n in (7, 8)] == [False, True]


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_thirds_may_differ_by_two_percent_of_the_median(scale: float) -> None:
    for more, is_steady in ((1.019, True), (1.021, False)):
        assert steady.is_steady(scale * np.repeat([1.0, 1.0, more], 10)) == is_steady


def test_false_alarms_are_rare() -> None:
    alarms = sum(not steady.summarise(_noise(30, seed)).steady for seed in range(200))
    assert alarms <= 0.05 * 200


@pytest.mark.parametrize("n", [6, 7, 20, 101, 3000])
def test_median_interval_is_the_sign_test(n: int) -> None:
    low, high = steady.median_interval(np.arange(n, dtype=float))
    rank = int(low)
    assert high == n - 1 - rank
    # scipy: the chance that the median lies outside, and that it would with one rank less on each side.
    assert 2 * stats.binom.cdf(rank, n, 0.5) <= 0.05 + 1e-12
    assert 2 * stats.binom.cdf(rank + 1, n, 0.5) > 0.05


def test_median_interval_needs_six_values() -> None:
    assert steady.median_interval(np.arange(5.0)) == (None, None)


def test_percentiles_are_numpys() -> None:
    kept = _noise(50)[steady.warmup_steps(_noise(50)) :]
    got = steady.summarise(_noise(50))
    assert got.step_time_p99_s == np.percentile(kept, 99)
    assert got.step_time_mad_s == pytest.approx(stats.median_abs_deviation(kept))


@pytest.mark.parametrize("times", [[], [1.0, float("nan")]])
def test_nothing_to_describe(times: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one is needed"):
        steady.summarise(times)
