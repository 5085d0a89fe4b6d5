"""Repeats that were interleaved, in pairs: the test, its interval, which runs are pairs, and equivalence."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from paralab.benchmarks.report import evidence, stats
from paralab.benchmarks.report.compare import main
from paralab.benchmarks.report.comparing import compare_column, compare_files
from paralab.benchmarks.report.metrics import METRICS
from paralab.benchmarks.report.outcome import gate
from paralab.benchmarks.report.paired import Pairs, least_pairs, pair_up
from paralab.records.writing import append
from tests.unit.synthetic_runs import run

STEP = METRICS["step_time_p50_s"]
WITHIN = replace(STEP, within=0.02)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _draw_from_the_beginning():
    """What a test draws does not depend on which tests ran before it."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def noisy(n, ratio=1.0, noise=0.02, rng=RNG):
    """Return pairs on a machine that drifts by far more than the noise within a pair."""
    machine = 0.1 * np.exp(np.cumsum(rng.normal(0, 0.2, n)))
    base, other = (machine * np.exp(rng.normal(0, noise, n)) for _ in range(2))
    return Pairs(tuple(base), tuple(other * ratio))


def repeats(pairs, strategies=("ddp", "zero1"), *, turned=True, **cells):
    """Return the rows that a sweep of two cases leaves; `turned`: which is first is drawn for each repeat."""
    found, coins = [], np.random.default_rng(2).integers(2, size=len(pairs))
    for number, times in enumerate(zip(pairs.base, pairs.other, strict=True)):
        for place, (time, strategy) in enumerate(zip(times, strategies, strict=True)):
            at = 2 * number + (1 - place if turned and coins[number] else place)
            found.append(run(at, group="g", strategy=strategy, step_time_p50_s=time, **cells | {"repeat": number}))
    return found


def compared(rows, metric=STEP):
    (found,) = compare_column(rows, "strategy", metric).comparisons
    return found


@pytest.mark.parametrize("n", [6, 9, 25])
@pytest.mark.parametrize("ratio", [1.0, 1.02])
def test_p_is_that_of_scipy(n, ratio):
    pairs = noisy(n, ratio)
    for alternative, p in (("two-sided", pairs.p), ("greater", pairs.p_above(1.0)), ("less", pairs.p_below(1.0))):
        assert p == pytest.approx(scipy_stats.wilcoxon(pairs.logs, alternative=alternative, method="exact").pvalue)


def test_more_pairs_than_are_counted_have_a_normal_distribution():
    pairs = noisy(301, 1.01, 0.1, np.random.default_rng(2))
    p = scipy_stats.wilcoxon(pairs.logs, method="exact").pvalue
    assert 0.001 < p < 0.2 and pairs.p == pytest.approx(p, rel=0.02)
    assert compared(repeats(pairs), WITHIN).pairs == 301


@pytest.mark.parametrize("tail", [0.025, 0.05])
def test_the_interval_is_what_the_tests_do_not_reject(tail):
    pairs = noisy(12, 1.03)
    low, high = pairs.interval(tail)
    assert low < pairs.ratio < high
    found = evidence.of_pairs(pairs, None, tests=1, looks=False)
    assert (found.low, found.high) == pairs.interval(0.025), "whatever is asked, it is of 95%"
    assert pairs.p_above(low * (1 - 1e-9)) <= tail < pairs.p_above(low * (1 + 1e-9))
    assert pairs.p_below(high * (1 + 1e-9)) <= tail < pairs.p_below(high * (1 - 1e-9))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    intervals = [noisy(10, 1.2, rng=np.random.default_rng(seed)).interval(0.025) for seed in range(400)]
    assert 370 <= sum(low <= 1.2 <= high for low, high in intervals) <= 395


def test_the_ratio_is_the_median_of_the_means_of_all_two_pairs():
    assert Pairs((1.0,) * 3, (1.0, 1.0, np.exp(3))).ratio == pytest.approx(np.exp(0.75))  # of 0, 0, 0, 1.5, 1.5, 3


def test_pairs_without_any_difference_give_no_evidence():
    pairs = Pairs((0.1,) * 8, (0.1,) * 8)
    assert pairs.p == 1.0 and pairs.interval(0.025) == (1.0, 1.0)


def test_pairs_see_what_the_machine_hides_from_runs_that_are_compared_one_by_one():
    rows = repeats(noisy(10, 1.05))
    found = compared(rows)
    assert (found.verdict, found.pairs) == ("worse", 10) and 1.02 < found.low < 1.05 < found.high < 1.08
    alone = compared([replace(row, group=None) for row in rows])
    assert (alone.verdict, alone.pairs) == ("~", 0)


def test_a_machine_that_only_slows_down_makes_no_difference():
    slowing, wrong = 0.1 * 1.02 ** np.arange(20), 0
    for seed in range(200):
        coins = np.random.default_rng(seed).integers(2, size=10)
        turned = [
            tuple(sorted(pair, reverse=bool(coin))) for coin, pair in zip(coins, slowing.reshape(10, 2), strict=True)
        ]
        wrong += Pairs(*map(tuple, zip(*turned, strict=True))).p < 0.05
    assert wrong <= 12, "at most 5%, and 2% more by chance"
    straight = Pairs(tuple(slowing[::2]), tuple(slowing[1::2]))
    assert compared(repeats(straight, turned=False)).pairs == 0, "one is first in every pair: no pairs"


def test_pairs_are_of_one_group_and_one_repeat():
    rows = repeats(noisy(8))
    base, other = rows[::2], rows[1::2]
    assert len(pair_up(base, other, STEP.column)) == 8
    assert len(pair_up(base, other[2:], STEP.column)) == 6
    assert not len(pair_up(base, [replace(row, group="h") for row in other], STEP.column))
    assert not len(pair_up([replace(row, group=None) for row in base], other, STEP.column))
    straight = repeats(noisy(6), turned=False)
    assert not len(pair_up(straight[::2], straight[1::2], STEP.column)), "one is first in every pair"
    assert not len(pair_up(straight[1::2], straight[::2], STEP.column)), "and so is the other"
    many = noisy(16)
    for turned in (1, 2):  # of sixteen
        runs = [repeats(many, turned=False)[side::2] for side in (0, 1)]
        for i in range(turned):
            a, b = runs[0][i], runs[1][i]
            runs[0][i], runs[1][i] = replace(a, started_at=b.started_at), replace(b, started_at=a.started_at)
        assert len(pair_up(runs[0], runs[1], STEP.column)) == (16 if turned == 2 else 0), "one in eight"


def test_few_repeats_are_compared_as_runs():
    assert [least_pairs(tests, 0.05) for tests in (1, 2, 3, 4)] == [6, 7, 7, 8]
    found = compared(repeats(noisy(5, 1.5, 0.01)))
    assert found.pairs == 0 and found.p is not None
    rows = repeats(noisy(6, 1.5, 0.01))
    assert compared(rows).pairs == 6
    third = [replace(row, strategy="zero2", run_id=f"third-{row.run_id}") for row in rows if row.strategy == "zero1"]
    assert [c.pairs for c in compare_column([*rows, *third], "strategy", STEP).comparisons] == [0, 0]


@pytest.mark.parametrize(
    ("ratio", "noise", "verdict"),
    [(1.0, 0.002, "equivalent"), (1.01, 0.002, "equivalent"), (1.05, 0.01, "worse"), (0.95, 0.01, "better"),
     (1.0, 0.05, "not enough evidence")],
)  # fmt: skip
def test_every_comparison_with_a_margin_has_one_of_four_ends(ratio, noise, verdict):
    rows = repeats(noisy(10, ratio, noise, np.random.default_rng(1)))
    found = compared(rows, WITHIN)
    assert found.verdict == verdict and (found.more_repeats is not None) == (verdict == "not enough evidence")
    assert compared(rows).verdict in ("~", "better", "worse"), "without a margin nothing is called equivalent"


@pytest.mark.parametrize(("others", "needed"), [(1, 4), (3, 5)])
def test_one_run_says_nothing_about_how_many_would_decide(others, needed):
    rows = [run(i, strategy=f"s{i}", step_time_p50_s=0.1 + 0.01 * i) for i in range(1 + others)]
    for found in compare_column(rows, "strategy", WITHIN).comparisons:
        assert (found.verdict, found.more_repeats) == ("not enough evidence", None)
        needs = f"a verdict needs {needed} good runs of each: {needed - 1} more"
        assert found.notes == (f"one run says nothing about noise, and {needs}",)


def test_runs_that_are_no_pairs_can_be_equivalent_too():
    base, other = ([run(2 * i + side, step_time_p50_s=0.1 + 1e-5 * i) for i in range(6)] for side in (0, 1))
    (found,) = compare_files(base, other, WITHIN).comparisons
    assert (found.verdict, found.pairs) == ("equivalent", 0)
    far = [replace(row, run_id=f"far-{i}", step_time_p50_s=0.1 + 0.004 * i) for i, row in enumerate(other)]
    (found,) = compare_files(base, far, WITHIN).comparisons
    assert found.verdict == "worse" or found.more_repeats


def test_equivalence_of_runs_takes_an_interval_of_90_percent_within_the_margin():
    base, other = ((0.1 + 0.001 * RNG.standard_normal(12)).tolist() for _ in range(2))
    low, high = stats.ratio_interval(base, other, confidence=0.9)
    edge = max(1 - low, high - 1)
    assert stats.ratio_interval(base, other) != (low, high)
    for within, is_within in ((edge * 1.001, True), (edge * 0.999, False)):
        p = evidence.of_runs(base, other, None, within).p_equivalent
        assert p is not None and (p < 1) == is_within
    p = evidence.of_runs(base, other, None, 0.05).p_equivalent
    sides = ((0.95 * np.array(base), "less"), (1.05 * np.array(base), "greater"))
    one_sided = [scipy_stats.mannwhitneyu(a, other, alternative=way, method="exact").pvalue for a, way in sides]
    assert p == pytest.approx(max(one_sided))


def weigh(pairs):
    return evidence.of_pairs(pairs, 0.02, tests=1, looks=False)


def test_at_the_margin_few_are_called_equivalent():
    found = [weigh(noisy(12, 1.02, 0.01, np.random.default_rng(seed))).p_equivalent for seed in range(400)]
    assert sum(p < 0.05 for p in found) <= 20, "at most 5% of 400"


@pytest.mark.parametrize(("ratio", "noise"), [(1.0, 0.02), (1.03, 0.03), (1.01, 0.015)])
def test_about_so_many_more_repeats_decide_in_half_of_the_cases(ratio, noise):
    decided = asked = 0
    for seed in range(150):
        pairs = noisy(200, ratio, noise, np.random.default_rng(seed))
        few = Pairs(pairs.base[:8], pairs.other[:8])
        if min(weigh(few).p, weigh(few).p_equivalent) < 0.05:
            continue
        more = evidence.repeats_to_go(few.base, few.other, few, 0.02, tests=1, looks=False)
        asked += 1
        again = weigh(Pairs(pairs.base[: 8 + more], pairs.other[: 8 + more]))
        decided += min(again.p, again.p_equivalent) < 0.05
    assert asked > 50 and 0.4 < decided / asked < 0.8


@pytest.mark.parametrize("tests", [1, 3])
def test_so_many_more_repeats_are_counted_from_the_side_that_has_fewer(tests):
    base = [0.1 * (1.05 if i % 2 else 0.95) for i in range(12)]
    more = evidence.repeats_to_go(base, base[:4], Pairs((), ()), 0.02, tests=tests, looks=False)
    spread = np.sqrt(sum(np.var(np.log(side), ddof=1) for side in (base, base[:4])))
    reach = scipy_stats.norm.isf(0.05 / tests) * spread / np.log(1.02)
    assert more == np.ceil(reach**2 / 0.955) - 4
    assert evidence.repeats_to_go([0.1, 0.1001], [0.2, 0.2001], Pairs((), ()), 0.02, tests=1, looks=False) == 2, "four"


def test_the_margin_on_the_command_line(tmp_path, capsys):
    for row in repeats(noisy(10, 1.0, 0.002, np.random.default_rng(1))):
        append(tmp_path / "equal.csv", row)
    for row in repeats(noisy(10, 1.0, 0.03, np.random.default_rng(1))):
        append(tmp_path / "noisy.csv", row)
    words = ["--by", "strategy", "--equivalent-within", "2%", "--fail-over", "5"]
    assert main([str(tmp_path / "equal.csv"), *words]) == 0
    assert "equivalent within 2%" in capsys.readouterr().out
    assert main([str(tmp_path / "noisy.csv"), *words]) == 4
    assert "more repeats would decide" in capsys.readouterr().out
    assert main([str(tmp_path / "noisy.csv"), *words[:2], "--equivalent-within", "0"]) == 3
    assert "use a percentage above 0" in capsys.readouterr().err


def test_a_gate_takes_equivalence_for_evidence():
    found = compared(repeats(noisy(10, 1.01, 0.002)), WITHIN)
    assert (found.verdict, gate(found, 5)) == ("equivalent", 0)
