"""The arithmetic of a whole training: what is solved for comes back, and every number follows from its source."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from paralab import cli
from paralab.benchmarks.planner import errors as planner_errors
from paralab.benchmarks.planner.cases import published
from paralab.errors import ConfigError, LayoutError
from paralab.planning import checked, goals, records, scale
from paralab.planning.breakdown import CATEGORIES
from paralab.planning.goals import Goal
from paralab.planning.predict import evaluate
from paralab.planning.search import search
from paralab.planning.solving import counts, solve
from paralab.planning.steptime import BOUNDS

ADA = {"layers": 12, "hidden": 768, "heads": 12, "global_batch_size": 512, "gpu": "A100-SXM4-80GB"}
EIGHT = ADA | {"n_gpus": 8}


def facts(solved):
    best = int(solved.found.order[0])
    return {
        fact.name: fact.value for group in scale.facts(solved.found, best, solved.training).values() for fact in group
    }


def test_a_training_takes_what_its_formulas_say() -> None:
    solved = solve(Goal(tokens="20x", dollars_per_hour=2.0), EIGHT, None, "")
    found, said = solved.found, facts(solved)
    weights = 12 * (12 * 768**2 + 6 * 768) + (50257 + 2048) * 768
    assert scale.n_weights(found) == pytest.approx(weights, rel=1e-3)
    assert said["tokens"] == 20 * scale.n_weights(found) == said["compute-optimal tokens"]
    assert said["FLOPs"] == pytest.approx(6 * scale.n_weights(found) * said["tokens"])
    assert scale.model_flops(found.settled.case) == pytest.approx(
        512 * 2048 * (6 * scale.active_weights(found.settled.case) + 12 * 12 * 768 * 2048)
    )
    done, peak = scale.model_flops(found.settled.case), 312e12
    assert found.prediction.mfu * found.prediction.step_time_s * 8 * peak == pytest.approx(done)
    assert said["weights in bf16"] == pytest.approx(2 * scale.n_weights(found) / 1024**3)
    assert [said[f"ZeRO-{stage}, limit"] for stage in (1, 2, 3)] == [4, 8, 8]
    assert said["petaFLOP/s-days"] * 8.64e19 == pytest.approx(said["FLOPs"])
    seconds = float(found.prediction.step_time_s[found.order[0]]) * said["optimizer steps"]
    assert said["days"] * 86400 == pytest.approx(seconds)
    assert said["dollars"] == pytest.approx(2 * said["device-hours"]) == pytest.approx(16 * seconds / 3600)


def test_a_mixture_computes_with_the_experts_that_a_token_takes() -> None:
    solved = solve(Goal(tokens="1e9"), EIGHT | {"experts": 8, "experts_per_token": 2}, None, "")
    active = float(scale.active_weights(solved.found.settled.case))
    assert facts(solved)["FLOPs"] == pytest.approx(6 * active * 1e9)
    assert active < 0.6 * scale.n_weights(solved.found)


def test_days_and_dollars_are_solved_for_tokens_and_back() -> None:
    budget = solve(Goal(budget_usd=100.0, dollars_per_hour=2.0), EIGHT, None, "")
    assert facts(budget)["dollars"] == pytest.approx(100) and "tokens" in budget.said[0]
    days = solve(Goal(days=facts(budget)["days"]), EIGHT, None, "")
    assert facts(days)["tokens"] == pytest.approx(facts(budget)["tokens"])


def test_days_and_tokens_are_solved_for_the_fewest_gpus_that_do() -> None:
    solved = solve(Goal(tokens="20x", days=0.02), ADA, None, "")
    n = solved.found.settled.case.n_gpus
    assert facts(solved)["days"] <= 0.02 and f"{n:,} are the fewest" in solved.said[0]
    fewer = [m for m in counts(8) if m < n]
    assert fewer and facts(solve(Goal(tokens="20x"), ADA | {"n_gpus": fewer[-1]}, None, ""))["days"] > 0.02


def test_days_and_dollars_together_are_solved_for_gpus() -> None:
    solved = solve(Goal(budget_usd=1000.0, days=1.0, dollars_per_hour=2.0), ADA, None, "")
    assert solved.found.settled.case.n_gpus == 16 and facts(solved)["dollars"] <= 1000
    with pytest.raises(LayoutError, match="less than one GPU costs"):
        solve(Goal(budget_usd=1.0, days=1.0, dollars_per_hour=2.0), ADA, None, "")


def test_what_no_number_of_gpus_reaches_is_said() -> None:
    with pytest.raises(LayoutError, match="at best"):
        solve(Goal(tokens="1e14", days=0.5), ADA, None, "")


def test_a_goal_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="--budget-usd with --tokens"):
        Goal(tokens="1e9", budget_usd=1.0, dollars_per_hour=1.0).check(n_gpus=True)
    with pytest.raises(ConfigError, match="--days with --budget-usd says how many GPUs"):
        Goal(days=1.0, budget_usd=1.0, dollars_per_hour=1.0).check(n_gpus=True)
    for text in ("1e30", "-1", "0x", "many", "nan"):
        with pytest.raises(ConfigError, match="give a positive number"):
            goals.tokens_of(text)


def test_zero_divides_states_by_what_its_paper_says_where_they_are_those_of_the_paper() -> None:
    """Gradients in 16 bits: 16 bytes a weight, and factors that approach 4, 8 and N."""
    found = search(EIGHT | {"n_gpus": 512, "gradient_precision": "bf16"})
    said = {fact.name: fact.value for fact in (*scale.zero_factors(found), *scale.state_bytes_of_a_weight(found))}
    assert said["all"] == 16 and said["all, in courses"] == 20
    assert said["ZeRO-1, 512 devices"] == pytest.approx(4, rel=0.01)
    assert said["ZeRO-2, 512 devices"] == pytest.approx(8, rel=0.02)
    assert said["ZeRO-3, 512 devices"] == pytest.approx(512, rel=0.15)


# --- intervals, causes, and files


def test_the_range_holds_as_many_cases_as_it_says() -> None:
    """With the shipped constants, whose errors are smaller, it holds at least as many, every table weighted alike."""
    cases = published()
    target = planner_errors.planner_fit.targets()[0]
    known = target.known(cases)
    cases = cases.part(known)
    ratio = cases.step_time_s / evaluate(cases.case, cases.machine).step_time_s
    found = planner_errors.ranges(ratio, cases.table, cases.machine.arch)
    for arch, (low, high) in found.items():
        said_low, said_high = checked.step_time_range(arch)
        assert low < 1 < high and said_low <= low + 0.03 and said_high >= high - 0.03, arch
    assert checked.step_time_range("TPU") == checked.step_time_range("all")


def test_quantiles_weigh_tables_alike() -> None:
    """Ten cases of one table count as much as one of another."""
    ratio = np.array([1.0] * 10 + [2.0])
    tables = np.array(["many"] * 10 + ["one"])
    assert planner_errors.ranges(ratio, tables, np.array(["x"] * 11))["all"] == (1.0, 2.0)


def test_causes_add_up_to_the_step() -> None:
    found = search(EIGHT | {"n_gpus": 16, "sequence_length": 16384})
    assert set(found.causes_s) == set(BOUNDS)
    assert sum(found.causes_s.values()) == pytest.approx(found.prediction.step_time_s)
    assert all((seconds >= 0).all() for seconds in found.causes_s.values())


def test_files_hold_all_that_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --model gpt2 --size 124m --n-gpus 8 --tokens 20x --out"
    assert cli.main([*words.split(), str(tmp_path / "p.json"), "--top", "5"]) == 0
    document = json.loads((tmp_path / "p.json").read_text())
    assert document["command"] in " ".join(capsys.readouterr().out.replace("\\\n", " ").split())
    assert document["assumed"]["global_batch_size"] == 512 and len(document["layouts"]) == 5
    assert {"group", "name", "value", "unit", "source"} == set(document["training"][0])
    first = document["layouts"][0]
    assert first["memory_gib"] == pytest.approx(sum(first[f"{name.replace(' ', '_')}_gib"] for name in CATEGORIES))
    assert first["step_time_s"] == pytest.approx(sum(first[f"{name}_s"] for name in BOUNDS))
    assert first["step_time_low_s"] < first["step_time_s"] < first["step_time_high_s"]
    found = search(EIGHT)
    rows = list(csv.DictReader(io.StringIO(records.as_csv(found, found.order[:3], None).decode())))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] and rows[0].keys() == first.keys()
