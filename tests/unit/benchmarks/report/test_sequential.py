"""Verdicts that are looked for after every repeat: how often they are wrong, by simulation."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from paralab.benchmarks.report import evidence, formats, sequential
from paralab.benchmarks.report.choices import FIRST
from paralab.benchmarks.report.outcome import Outcome
from paralab.benchmarks.report.paired import Pairs
from paralab.benchmarks.report.verdict import judged
from tests.unit.benchmarks.report.test_paired import STEP, WITHIN, compared, noisy, repeats

CASES, MOST = 200, 30
UNDECIDED = ("insufficient", "not enough evidence")


def end(seed, *, ratio, noise, tests=1, naive=False):
    """Look at pairs until they are decided; on a machine that slows down, in waves, with rare long steps."""
    rng, slots = np.random.default_rng(seed), np.arange(2 * MOST)
    machine = 1 + rng.uniform(-0.003, 0.003) * slots + 0.02 * np.sin(slots / 3 + rng.uniform(0, 6))
    times = (machine * np.exp(noise * rng.standard_t(4, slots.size))).reshape(MOST, 2)
    times = np.where(rng.integers(2, size=(MOST, 1)) == 1, times, times[:, ::-1])  # the order of each is drawn
    for pairs in range(FIRST, MOST + 1):
        seen = Pairs(tuple(times[:pairs, 0]), tuple(times[:pairs, 1] * ratio))
        found = evidence.of_pairs(seen, 0.02, tests=tests, looks=not naive)
        if found.p_equivalent < evidence.LEVEL:
            return "equivalent"
        if found.p < evidence.LEVEL:
            return "slower" if found.ratio > 1 else "faster"
    return "not enough evidence"


def ends(**case):
    return Counter(end(seed, **case) for seed in range(CASES))


def test_equal_variants_seldom_get_a_difference_and_would_without_the_levels():
    found = ends(ratio=1.0, noise=0.02)
    assert found["slower"] + found["faster"] <= 0.05 * CASES
    naive = ends(ratio=1.0, noise=0.02, naive=True)
    assert naive["slower"] + naive["faster"] > 0.1 * CASES


@pytest.mark.parametrize(("ratio", "wrong"), [(1.02, "faster"), (0.98, "slower")])
def test_variants_a_margin_apart_are_seldom_called_equivalent(ratio, wrong):
    found = ends(ratio=ratio, noise=0.01)
    assert found["equivalent"] + found[wrong] <= 0.05 * CASES
    assert found["not enough evidence"] < 0.1 * CASES, "and most are decided"


def test_three_variants_beside_one_baseline_share_the_level():
    wrong = sum(end(seed, ratio=1.0, noise=0.02, tests=3) in ("slower", "faster") for seed in range(300))
    assert wrong <= 9, "5 of 300 are a third of 5%, and two standard deviations more are 9"


def test_what_is_called_equivalent_shares_the_level_as_well():
    pairs = noisy(20, 1.0, 0.01, np.random.default_rng(0))
    one, three = (evidence.of_pairs(pairs, 0.02, tests=tests, looks=True).p_equivalent for tests in (1, 3))
    assert three > 1.5 * one


def test_levels_are_spent_and_never_more_than_there_is():
    levels = [sequential.level(pairs, 0.025) for pairs in range(4, 61)]
    assert levels[:3] == [0, 0, 0] and 0.001 < min(levels[10:]) and max(levels) < 0.01
    assert sequential.level(90, 0.025) == levels[-1]


def test_rows_of_such_a_sweep_are_judged_by_these_levels():
    pairs = noisy(10, 1.03, 0.02, np.random.default_rng(1))
    once, often = (compared(repeats(pairs, until_decided_percent=rule), WITHIN) for rule in (None, 2.0))
    assert (once.verdict, once.looked_often) == ("worse", False)
    assert (often.verdict, often.looked_often) == ("not enough evidence", True)
    assert often.p > 0.05 > once.p and often.low < once.low
    clear = compared(repeats(noisy(10, 1.2, 0.02), until_decided_percent=2.0), WITHIN)
    assert clear.verdict == "worse"
    for p, low, verdict in ((0.01, 0.99, "~"), (0.06, 1.01, "~"), (0.01, 1.01, "worse"), (0.01, None, "~")):
        found = replace(often, p=p, p_equivalent=None, low=low, high=1.2)
        assert judged(found, STEP, tests=1).verdict == verdict, "it takes both"


@pytest.mark.parametrize(("metric", "first"), [(STEP, 8), (WITHIN, 7)])
def test_before_the_first_look_that_can_decide_it_is_said_how_many_repeats_are_lacking(metric, first):
    clear = noisy(first, 1.5, 0.001)
    for many in (2, first - 1):
        few = Pairs(*[side[:many] for side in (clear.base, clear.other)])
        found = compared(repeats(few, until_decided_percent=2.0), metric)
        assert (found.p, found.low, found.high) == (None, None, None) and found.verdict in UNDECIDED
        assert f"{many} repeats of each so far, and the first look that can decide is at {first}" in found.notes[-1]
        assert found.notes[-1].endswith(f"{first - many} more")
        said = formats.text(Outcome([found]), metric)
        assert "nothing can be said yet" in said and not re.search(r"\binf\b|p = 1", said)
        json.loads(formats.WRITERS["json"](Outcome([found]), metric))
    assert sequential.level(first, 0.05 if metric is WITHIN else 0.025) > 0 == sequential.level(first - 1, 0.025)
    assert compared(repeats(clear, until_decided_percent=2.0), metric).p is not None


def test_where_a_look_can_call_variants_equivalent_but_not_different_there_is_no_interval():
    found = compared(repeats(noisy(7, 1.0, 0.0005), until_decided_percent=2.0), WITHIN)
    assert (found.verdict, found.low, found.high) == ("equivalent", None, None)
    json.loads(formats.WRITERS["json"](Outcome([found]), WITHIN))


def test_looking_often_never_falls_back_to_runs_one_by_one():
    clear = noisy(8, 2.0, 0.01)
    rows = repeats(clear, turned=False, until_decided_percent=2.0)
    found = compared(rows, WITHIN)
    assert (found.verdict, found.pairs, found.p) == ("not enough evidence", 0, None)
    apart = [replace(row, group=row.strategy) for row in rows]
    assert compared(apart, WITHIN).verdict == "worse", "of other sweeps they are just runs"
