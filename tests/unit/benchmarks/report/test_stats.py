from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from paralab.benchmarks.report import stats

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _draw_from_the_beginning():
    """What a test draws does not depend on which tests ran before it."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 4), (5, 5), (3, 7), (12, 9), (20, 20)])
def test_exact_p_is_that_of_scipy(n, m):
    for shift in (0, 0.5, 2):
        a, b = RNG.normal(size=n).tolist(), RNG.normal(loc=shift, size=m).tolist()
        assert stats.mann_whitney(a, b) == pytest.approx(scipy_stats.mannwhitneyu(a, b, method="exact").pvalue)


@pytest.mark.parametrize("digits", [0, 1, 8])
def test_normal_p_is_that_of_scipy_with_and_without_ties(digits):
    for shift in (0, 0.3, 1):
        a, b = np.round(RNG.normal(size=30), digits).tolist(), np.round(RNG.normal(shift, size=25), digits).tolist()
        expected = scipy_stats.mannwhitneyu(a, b, method="asymptotic").pvalue
        assert stats.mann_whitney(a, b) == pytest.approx(expected)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.lists(st.integers(0, 4), min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_exact_p_with_ties_is_the_share_of_all_relabellings(a, b):
    ranks = scipy_stats.rankdata([*a, *b])
    mean = len(a) * (len(ranks) + 1) / 2
    sums = [sum(ranks[list(chosen)]) for chosen in combinations(range(len(ranks)), len(a))]
    extreme = [abs(total - mean) >= abs(sum(ranks[: len(a)]) - mean) for total in sums]
    assert stats.mann_whitney(a, b) == pytest.approx(np.mean(extreme))


def test_exact_and_normal_meet_at_the_limit(monkeypatch):
    a, b = RNG.normal(size=20).tolist(), RNG.normal(0.3, size=20).tolist()  # near the level
    exact = stats.mann_whitney(a, b)
    monkeypatch.setattr(stats, "EXACT_LIMIT", 0)
    assert stats.mann_whitney(a, b) == pytest.approx(exact, rel=0.03)


def test_identical_runs_give_no_evidence():
    assert stats.mann_whitney([1.0] * 30, [1.0] * 30) == 1.0
    assert stats.mann_whitney([1.0] * 4, [1.0] * 4) == 1.0


@pytest.mark.parametrize("bad", [[], [float("nan"), 1.0]])
def test_bad_arms_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        stats.mann_whitney(bad, [1.0])


def test_smallest_p_is_reached_when_no_run_overlaps():
    for n, m in ((4, 4), (5, 5), (4, 6)):
        p = stats.mann_whitney(list(range(n)), list(range(100, 100 + m)))
        assert p == pytest.approx(stats.smallest_p(n, m))


def test_holm_is_that_of_its_definition():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_the_interval_is_that_of_scipy_and_repeats():
    a, b = RNG.normal(10, 0.5, size=12), RNG.normal(11, 0.5, size=12)
    low, high = stats.ratio_interval(a.tolist(), b.tolist())
    expected = scipy_stats.bootstrap(
        (a, b), lambda x, y, axis: np.median(y, axis=axis) / np.median(x, axis=axis), method="percentile", rng=1
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.003)
    assert (low, high) == stats.ratio_interval(a.tolist(), b.tolist())
    assert low < np.median(b) / np.median(a) < high


def test_the_spread_of_fewer_than_six_runs_is_their_range():
    values = [1.0, 1.1, 1.2, 1.3, 1.4, 9.0]
    assert stats.spread(values[:1]) is None
    for few in (values[:2], values[:5]):
        assert (stats.spread(few), stats.spread_name(few)) == ((min(few), max(few)), "range")
    assert (stats.spread(values), stats.spread_name(values)) == (stats.median_interval(values), "95% interval")
    assert stats.spread(values)[1] < 9.0


def test_the_interval_covers_the_truth_as_often_as_it_says():
    hits = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        low, high = stats.ratio_interval(rng.normal(1, 0.05, 15).tolist(), rng.normal(1.2, 0.05, 15).tolist())
        hits += low <= 1.2 <= high
    assert 88 <= hits <= 100


@pytest.mark.parametrize("counts", [(6, 10, 0, 10), (2, 7, 0, 5), (1, 10, 0, 10), (3, 5, 1, 9), (0, 5, 0, 5)])
def test_fisher_is_that_of_scipy(counts):
    failed, runs, base_failed, base_runs = counts
    table = [[failed, runs - failed], [base_failed, base_runs - base_failed]]
    assert stats.fisher(*counts) == pytest.approx(scipy_stats.fisher_exact(table, alternative="greater").pvalue)
