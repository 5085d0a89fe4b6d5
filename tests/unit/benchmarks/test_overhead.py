"""What the pairs of `paralab overhead` say, and that both halves of a pair run."""

import re

import pytest

from paralab.benchmarks.overhead import LIMIT, Pair, main, verdict


def pairs(*ratios: float) -> list[Pair]:
    """Return stretches on a machine that others use as well."""
    loads = (1.0, 1.1, 0.9, 2.0, 1.0, 1.2, 1.0, 0.8)
    return [Pair(ratio * s, s, 0.002) for ratio, s in zip(ratios, loads, strict=True)]


def test_a_cost_of_half_a_percent_is_within_the_limit() -> None:
    text, status = verdict(pairs(*[1.005] * 8), steps=10)
    assert status == 0 and "ratio 1.0050, 95% interval 1.0050 to 1.0050: at most 1%" in text
    assert "0.20% of a core" in text


def test_a_cost_of_three_percent_is_not() -> None:
    text, status = verdict(pairs(*[1.03] * 8), steps=10)
    assert status == 1 and "more than 1%" in text


def test_noise_is_no_evidence() -> None:
    text, status = verdict(pairs(*[1.2, 0.8] * 4), steps=10)
    assert status == 0 and "not enough evidence" in text


def test_the_halves_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "2x32x4v257", "--seq-len", "16", "--strategy", "single", "--steps", "2", "--pairs", "6"]
    status, said = main([*words, "--global-batch-size", "2"]), capsys.readouterr().out
    assert "gpt2 2x32x4v257, single as dp1, fp32\n  step " in said and "6 pairs of 2" in said
    times = re.search(r"step (\S+) m?s measured, (\S+) m?s bare", said)
    assert times and all(0 < float(number) < 1000 for number in times.groups())
    low = re.search(r"interval (\S+) to", said)
    assert low and (float(low[1]) > LIMIT) == ("more than 1%" in said) == bool(status)
