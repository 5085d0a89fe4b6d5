"""Verdicts on two sets of runs: what is better, what is not comparable, and what has too little evidence."""

import re
from dataclasses import replace

import numpy as np
import pytest

from paralab.benchmarks.report import stats
from paralab.benchmarks.report.compare import main
from paralab.benchmarks.report.comparing import compare_column, compare_files
from paralab.benchmarks.report.comparison import Comparison
from paralab.benchmarks.report.families import families
from paralab.benchmarks.report.metrics import METRICS
from paralab.benchmarks.report.outcome import gate
from paralab.benchmarks.report.sections import pieces
from paralab.benchmarks.report.sources import file_labels, load
from paralab.benchmarks.report.variants import variants
from paralab.benchmarks.report.verdict import judged
from paralab.records.proven import parity_words
from tests.unit.synthetic_runs import interleaved, run, runs, write

STEP = METRICS["step_time_p50_s"]
A = [0.100, 0.101, 0.099, 0.102, 0.098]
SLOWER = [0.110, 0.111, 0.109, 0.112, 0.108]


def simulated(slowdown, repeats, drift=1.0, times=200):
    found = []
    for seed in range(times):
        a, b = interleaved(np.random.default_rng(seed), repeats=repeats, slowdown=slowdown, drift=drift)
        base, other = runs(a, every=2), runs(b, first=1, every=2)
        (comparison,) = compare_files(base, other, STEP).comparisons
        found.append(comparison.verdict)
    return found


@pytest.mark.parametrize("drift", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("repeats", [5, 8])
def test_a_against_a_on_a_drifting_machine_seldom_gives_a_verdict(repeats, drift, monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 1000)
    verdicts = simulated(1.0, repeats, drift)
    assert set(verdicts) <= {"~", "better", "worse"}
    assert sum(verdict != "~" for verdict in verdicts) <= 10, "at most 5% of 200"


def test_a_true_slowdown_of_a_tenth_is_found(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 1000)
    verdicts = simulated(1.1, 8)
    assert verdicts.count("worse") >= 160 and "better" not in verdicts


def test_the_ratio_is_that_of_the_medians():
    (found,) = compare_files(runs(A), runs(SLOWER), STEP).comparisons
    assert found.ratio == pytest.approx(1.1) and found.low <= found.ratio <= found.high
    assert found.p == pytest.approx(2 / 252) and found.verdict == "worse"
    (found,) = compare_files(runs(SLOWER), runs(A), STEP).comparisons
    assert found.verdict == "better"


def test_higher_is_better_for_throughput():
    (found,) = compare_files(runs(A), runs(SLOWER), METRICS["tokens_per_s"]).comparisons
    assert found.verdict == "worse" and found.ratio == pytest.approx(1 / 1.1)
    assert found.worse_percent == pytest.approx(100 / 11) and (gate(found, 5), gate(found, 10)) == (2, 0)
    (found,) = compare_files(runs(SLOWER), runs(A), METRICS["tokens_per_s"]).comparisons
    assert (found.verdict, gate(found, 5)) == ("better", 0)


def test_under_four_repeats_is_insufficient():
    (found,) = compare_files(runs(A[:3]), runs(SLOWER), STEP).comparisons
    assert found.verdict == "insufficient" and found.p is None and found.ratio == pytest.approx(1.1)


def test_many_arms_need_more_repeats_and_say_how_many():
    rows = [r for i in range(4) for r in runs([t * (1 + i / 10) for t in A[:4]], strategy=f"s{i}")]
    outcome = compare_column(rows, "strategy", STEP)
    assert {c.verdict for c in outcome.comparisons} == {"insufficient"}
    assert outcome.comparisons[0].notes == (
        "a verdict on 3 variants beside one baseline needs 5 good runs of each: 1 more",
    )


def test_arms_beside_one_base_are_corrected():
    rows = [r for i in range(4) for r in runs([t * (1 + i / 5) for t in A], strategy=f"s{i}")]
    outcome = compare_column(rows, "strategy", STEP)
    assert [c.p for c in outcome.comparisons] == pytest.approx([3 * 2 / 252] * 3)
    assert [(c.base, c.other) for c in outcome.comparisons] == [("s0", "s1"), ("s0", "s2"), ("s0", "s3")]
    outcome = compare_column(rows, "strategy", STEP, baseline="s2")
    assert [c.verdict for c in outcome.comparisons] == ["better", "better", "worse"]


@pytest.mark.parametrize(
    ("column", "cell", "said"),
    [("global_batch_size", 16, "--global-batch-size"), ("sequence_length", 256, "sequence"),
     ("precision", "bf16", "--precision"), ("data_sha256", "cd" * 32, "--data"), ("cpu_model", "CPU 2", "machine"),
     ("world_size", 4, "--nproc"), ("cores_allowed", 4.0, "CPU limit"), ("data_sha256", None, "unknown")],
)  # fmt: skip
def test_other_work_is_refused_and_named(column, cell, said):
    outcome = compare_files(runs(A), runs(A, **{column: cell}), STEP)
    assert not outcome.comparisons and outcome.exit_status() == 3
    (refusal,) = outcome.refusals
    assert [d.column.name for d in refusal.differences] == [column] and said in str(refusal)
    forced = compare_files(runs(A), runs(A, **{column: cell}), STEP, force=True)
    assert [c.forced for c in forced.comparisons] == [True] and forced.exit_status() == 0
    assert any("not the same work" in note for note in forced.comparisons[0].notes)


def test_cpu_and_gpu_are_not_compared_even_by_force():
    gpu = runs(A, device="cuda", backend="nccl", gpu_name="GPU")
    for outcome in (
        compare_files(runs(A), gpu, STEP, force=True),
        compare_column([*runs(A), *gpu], "device", STEP, force=True),
        compare_column([*runs(A, strategy="zero1"), *gpu], "strategy", STEP, force=True),
    ):
        assert not outcome.comparisons and outcome.exit_status() == 3
        assert "CPU and GPU runs are never compared" in str(outcome.refusals[0])


@pytest.mark.parametrize(("low", "verdict"), [(0.99, "~"), (1.01, "worse")])
def test_a_small_p_alone_is_no_verdict(low: float, verdict: str) -> None:
    found = Comparison("", "a", "b", STEP.column, base_runs=5, other_runs=5, ratio=1.05, low=low, high=1.2)
    assert judged(replace(found, p=0.01, p_independent=0.01), STEP, tests=1).verdict == verdict


def test_commits_and_checksums_are_short_and_known_whole() -> None:
    rows = [*runs(A, git_commit="ab" * 20), *runs(A, git_commit="cd" * 20)]
    (found,) = compare_column(rows, "git_commit", STEP, baseline="cd" * 20).comparisons
    assert (found.base, found.other) == ("cdcdcdcdcdcd", "abababababab")


def test_cases_join_on_strategy_and_size():
    base = [*runs(A), *runs(A, strategy="zero1"), *runs(A, size="small")]
    outcome = compare_files(base, [*runs(SLOWER, strategy="zero1"), *runs(A, size="small"), *runs(A)], STEP)
    assert [c.verdict for c in outcome.comparisons] == ["~", "worse", "~"] and not outcome.refusals + outcome.alone
    assert (outcome.exit_status(5), outcome.exit_status(20)) == (2, 0)
    wrong = compare_files([*runs(A, parity=False), *runs(A, size="small")], runs(A), STEP, force=True)
    assert wrong.exit_status() == 3, "one baseline that failed parity is enough"


def test_the_only_case_of_each_file_may_be_done_in_another_way():
    outcome = compare_files(runs(A), runs(SLOWER, engine="deepspeed"), STEP, names=("ours", "theirs"))
    (found,) = outcome.comparisons
    assert (found.base, found.other, found.verdict) == ("ours ddp torch", "theirs ddp deepspeed", "worse")


def test_one_case_that_does_not_match_refuses_the_whole():
    outcome = compare_files(
        [*runs(A), *runs(A, strategy="zero1")], [*runs(A), *runs(A, strategy="zero1", precision="bf16")], STEP
    )
    assert len(outcome.comparisons) == len(outcome.refusals) == 1 and outcome.exit_status() == 3


def test_what_only_one_file_has_is_listed():
    outcome = compare_files([*runs(A), *runs(A, strategy="zero1")], runs(A), STEP)
    assert outcome.exit_status() == 0 and len(outcome.alone) == 1 and "zero1" in outcome.alone[0]


def test_failures_stand_beside_the_verdict_and_count_as_a_regression():
    failed = [run(i, status="oom", failed_rank=1, failed_step=3, reason="no memory", step_time_p50_s=None,
                  cpu_model=None, layout=None, strategy=None, data_sha256=None) for i in range(2)]  # fmt: skip
    (found,) = compare_files(runs(A, every=2), [*runs(A, every=2, first=1), *failed], STEP).comparisons
    assert found.verdict == "~" and found.other_runs == 5
    assert found.notes == ("B ddp: 2 of 7 runs failed: oom at rank 1, step 3 (no memory)",)
    outcome = compare_files(runs(A), failed, STEP)
    assert [c.verdict for c in outcome.comparisons] == ["failed"]
    assert outcome.exit_status(5.0) == 2 and outcome.exit_status() == 0


def test_environment_and_the_order_of_runs_are_told():
    (found,) = compare_files(runs(A), runs(A, first=50, torch_version="2.14.0", steady=False), STEP).comparisons
    notes = "\n".join(found.notes)
    assert (
        "torch: 2.13.0 / 2.14.0" in notes
        and "drift" in notes
        and "5 of 5 runs never reached a steady step time" in notes
    )
    (found,) = compare_files(runs(A, every=2), runs(A, first=1, every=2), STEP).comparisons
    assert found.notes == ()


def made_in_blocks(repeats, correlation, rng):
    """Return the verdict on two equal variants, made one after the other on a machine that drifts by itself."""
    noise = rng.standard_normal(2 * repeats)
    states = [noise[0]]
    for shock in noise[1:]:
        states.append(correlation * states[-1] + np.sqrt(1 - correlation**2) * shock)
    times = list(0.1 * np.exp(0.03 * np.array(states)))
    (found,) = compare_files(runs(times[:repeats]), runs(times[repeats:], first=repeats), STEP).comparisons
    return found


@pytest.mark.parametrize("repeats", [5, 10])
def test_drift_between_blocks_is_not_taken_for_a_difference(repeats, monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    found = [made_in_blocks(repeats, 0.88, rng) for _ in range(200)]
    false = sum(comparison.verdict in ("better", "worse") for comparison in found)
    naive = sum(comparison.p_independent < 0.05 for comparison in found)
    assert false <= 12 and naive >= 40, "6% of 200, where Mann-Whitney alone is wrong in more than 20%"
    assert all(any("not interleaved" in note for note in comparison.notes) for comparison in found)


def test_runs_made_one_after_the_other_need_stronger_evidence():
    (found,) = compare_files(runs(A), runs([1.1 * t for t in A], first=50), STEP).comparisons
    assert found.verdict == "not interleaved" and found.p_independent < 0.05 < found.p
    assert found.low < 1 < found.high and gate(found, 5) == 4
    assert found.low * found.high == pytest.approx(found.ratio**2), "drift goes either way"
    (found,) = compare_files(runs(A), runs([2 * t for t in A], first=50), STEP).comparisons
    assert found.verdict == "worse" and found.low > 1 and gate(found, 5) == 2


def test_a_variant_that_fails_most_of_the_time_is_never_better():
    failing = [run(40 + i, status="oom", step_time_p50_s=None) for i in range(6)]
    (found,) = compare_files(runs(A), [*runs([t / 2 for t in A[:4]]), *failing], STEP).comparisons
    assert (found.verdict, found.other_failed, gate(found, 5)) == ("fails more", 6, 2)
    (found,) = compare_files([*runs(A[:4]), *failing], runs(SLOWER), STEP).comparisons
    assert (found.verdict, gate(found, 5)) == ("fails less", 4)
    (found,) = compare_files(runs(A), [*runs([t / 2 for t in A]), failing[0]], STEP).comparisons
    assert (found.verdict, gate(found, 5)) == ("better", 4), "one failure may be chance, but a gate does not pass it"
    (found,) = compare_files(runs(A), [*runs(A[:4]), *failing[:4]], STEP).comparisons
    assert found.verdict == "fails more", "half of the runs"
    (found,) = compare_files(runs(A * 4), [*runs(A * 2, first=60), *failing], STEP).comparisons
    assert found.verdict == "fails more", "6 of 16, of which chance makes 0 of 20 in one case of a hundred"


NO_NUMBER = [replace(r, step_time_p50_s=float("nan")) for r in runs(A, first=10)]
CRASHED = [replace(r, status="crash", step_time_p50_s=None) for r in runs(A, first=20)]


@pytest.mark.parametrize(
    ("base", "other", "status"),
    [(runs(A), NO_NUMBER, 4), (NO_NUMBER, runs(A), 4), (CRASHED, runs(A), 4), (runs(A), CRASHED, 2),
     (runs(A), runs([4 * t for t in A[:3]], first=30), 4), (runs(A), runs(SLOWER), 2), (runs(A), runs(A, first=1), 0),
     (runs(SLOWER), runs(A), 0), (NO_NUMBER, CRASHED, 4),
     (runs(A), runs([0.09, 0.15, 0.11, 0.095, 0.111]), 4)],
)  # fmt: skip
def test_a_gate_that_cannot_decide_does_not_pass(base, other, status):
    outcome = compare_files(base, other, STEP)
    assert outcome.exit_status(5) == status and outcome.exit_status() == 0


def test_what_is_worse_by_exactly_the_limit_passes_the_gate():
    (found,) = compare_files(runs([1.0] * 5), runs([1.25] * 5, first=1), STEP).comparisons
    assert (found.verdict, gate(found, 25.0), gate(found, 24.9)) == ("worse", 0, 2)


def test_a_case_that_is_gone_does_not_pass_the_gate():
    outcome = compare_files([*runs(A), *runs(A, strategy="zero1")], runs(A, first=1), STEP)
    assert (outcome.exit_status(), outcome.exit_status(5)) == (0, 4)
    outcome = compare_files(runs(A), [*runs(A, first=1), *runs(A, strategy="zero1")], STEP)
    assert (outcome.exit_status(), outcome.exit_status(5)) == (0, 0)


def test_ten_classes_and_a_thousand_are_not_the_same_work(tmp_path, capsys):
    sides = [[replace(r, model="resnet", n_classes=n) for r in runs(A, first=i)] for i, n in ((0, 10), (1, 1000))]
    assert main([write(tmp_path / f"{name}.csv", side) for name, side in zip("ab", sides, strict=True)]) == 3
    assert "number of classes: 10 / 1000: run both with one --n-classes" in " ".join(capsys.readouterr().out.split())


def test_a_variant_that_failed_parity_is_not_better(tmp_path, capsys):
    wrong = runs([t / 2 for t in A], parity=False, parameter_difference_max=0.68)
    a, b = write(tmp_path / "a.csv", runs(A, parity=True)), write(tmp_path / "b.csv", wrong)
    for form in ("text", "markdown", "csv", "json"):
        assert main([a, b, "--format", form]) == 2
        out = capsys.readouterr().out
        assert "parity" in out.splitlines()[0] or form in ("csv", "json"), "said before any number"
        assert "parity failed" in out and "better" not in out.replace("lower is better", "").replace('"better":', "")
    assert "parameters off by 0.68" in out
    assert main([b, a]) == 3, "no baseline"
    assert main([a, write(tmp_path / "c.csv", runs(A, first=1))]) == 0
    assert "parity was not checked: c ddp\n" in capsys.readouterr().out


def test_one_run_that_passed_parity_speaks_for_its_variant():
    proven = [replace(r, parity=True if i == 0 else None) for i, r in enumerate(runs(A))]
    (found,) = compare_files(proven, runs(A, first=1), STEP).comparisons
    assert (found.base_parity, found.other_parity) == (True, None)


def test_a_failed_parity_is_that_of_the_variant_whatever_other_runs_say(tmp_path, capsys):
    cells = ((False, 0.68), (True, 1e-7), (False, 0.1))
    rows = [replace(run(i), parity=parity, parameter_difference_max=gap) for i, (parity, gap) in enumerate(cells)]
    (found,) = compare_files(runs(A, first=9), rows, STEP).comparisons
    assert (found.other_parity, found.verdict) == (False, "parity failed")
    said = "2 of 3 runs do not compute what one process computes (parameters off by 0.68)"
    assert found.notes[0].endswith(said), "the largest"


SOME, NONE = "2 of 32 blocks", "not proven: the reference does not fit"


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([{"parity": True}], "passed"),
        ([{"parity": True, "parity_scope": "whole"}, {}], "passed"),
        ([{"parity": True, "parity_scope": SOME}, {}], f"passed on {SOME}"),
        ([{"parity": True, "parity_scope": SOME}, {"parity": True, "parity_scope": "whole"}], "passed"),
        ([{"parity": False, "parity_scope": SOME}, {"parity": True, "parity_scope": "whole"}], f"FAILED on {SOME}"),
        ([{"parity_scope": NONE, "parity_result": NONE}, {}], NONE),
        ([{}], "not checked"),
    ],
)
def test_parity_in_words_says_on_how_much_it_was_proved(cells, words):
    assert parity_words([replace(run(i), **each) for i, each in enumerate(cells)]) == words


def test_parity_that_was_proved_on_a_part_is_never_shown_as_passed(tmp_path, capsys):
    part = write(tmp_path / "a.csv", runs(A, parity=True, parity_scope=SOME, parity_result="passed"))
    none = write(tmp_path / "b.csv", runs(A, first=1, parity_scope=NONE, parity_result=NONE))
    for form in ("text", "markdown", "csv", "json"):
        assert main([part, none, "--format", form]) == 0
        out = capsys.readouterr().out
        assert f"passed on {SOME}" in out and NONE in out
    assert main([part, none]) == 0
    assert f"\nparity passed on {SOME}: a ddp\nparity {NONE}: b ddp\n" in capsys.readouterr().out


def test_a_run_that_stands_twice_counts_once(tmp_path, capsys):
    a = write(tmp_path / "a.csv", runs(A[:3]))
    b = write(tmp_path / "b.csv", [*runs(A[:3]), *runs(SLOWER), *runs(SLOWER)])
    assert main([a, b]) == 0
    out, error = capsys.readouterr()
    assert "(n=3)" in out and "(n=5)" in out and f"skipped 8 rows of {b}" in error and error.count("\n") == 1
    assert main([a, a, "--by", "engine"]) == 3
    error = capsys.readouterr().err
    assert f"{a}: given more than once, read once" in error and "holds no runs" not in error
    assert main([a, write(tmp_path / "copy.csv", runs(A[:3]))]) == 3
    assert "copy.csv holds no runs that count" in capsys.readouterr().err


def test_two_runs_of_one_id_are_refused_with_their_lines(tmp_path, capsys):
    a = write(tmp_path / "a.csv", runs(A, parity=True))
    b = write(tmp_path / "b.csv", [run(9), replace(run(9), dp=4)])
    assert main([a, b]) == 3
    error = capsys.readouterr().err
    assert f"{b} line 2 and {b} line 3 are two different runs with the id run-9" in error and error.count("\n") == 1


def test_files_of_one_name_are_told_apart_by_their_folder(tmp_path, capsys):
    paths = [tmp_path / name for name in ("old/bench.csv", "new/bench.csv", "new/other.csv", "x/new/other.csv")]
    assert file_labels(paths) == ["old/bench", "new/bench", f"{tmp_path.name}/new/other", "x/new/other"]
    write(paths[0], runs(A))
    write(paths[1], runs(SLOWER))
    assert main([str(paths[0]), str(paths[1])]) == 0
    assert re.search("old/bench ddp +baseline +100 ms", capsys.readouterr().out)


def grid():
    """Return two engines under two strategies, in turns."""
    cases = [(s, e) for s in ("zero1", "ddp") for e in ("torch", "deepspeed")]
    return [
        record
        for place, (strategy, engine) in enumerate(cases)
        for record in runs([t * (1 + place / 10) for t in A], first=place, every=4, strategy=strategy, engine=engine)
    ]


def test_a_variant_is_compared_with_the_one_that_differs_in_one_thing():
    pairs = [(f.base.label, [o.label for o in f.others]) for f in families(variants(grid(), {}))]
    assert pairs == [
        ("zero1 torch", ["zero1 deepspeed"]),
        ("ddp torch", ["ddp deepspeed"]),
        ("ddp torch", ["zero1 torch"]),
    ]


def test_the_baseline_is_one_process_else_plain_data_parallelism_and_has_good_runs():
    failed = [replace(r, status="oom", step_time_p50_s=None) for r in runs(A, strategy="single")]
    ddp, zero, single = (runs(A, strategy=name) for name in ("ddp", "zero1", "single"))
    for rows, base in (
        ([*zero, *ddp, *single], "single"),
        ([*zero, *ddp, *failed], "ddp"),
        ([*zero, *failed], "zero1"),
    ):
        assert [family.base.label for family in families(variants(rows, {}))] == [base]


def test_compare_and_report_decide_alike(tmp_path):
    path = tmp_path / "grid.csv"
    write(path, grid())
    (piece,) = pieces(load([path]))
    shown = {(c.base_median, c.other_median): (c.p, c.verdict) for w in piece.ways if (c := w.against_base)}
    found = {
        (c.base_median, c.other_median): (c.p, c.verdict)
        for by in ("engine", "strategy")
        for c in compare_column(grid(), by, STEP).comparisons
    }
    assert len(shown) == 3 and shown.items() <= found.items()


def test_engines_under_several_strategies_say_which() -> None:
    rows = [
        record
        for strategy, layout in (("ddp", "dp2"), ("zero3", "dp2/zero3"))
        for engine in ("torch", "deepspeed")
        for record in runs(A, strategy=strategy, layout=layout, engine=engine)
    ]
    names = [comparison.work for comparison in compare_column(rows, "engine", STEP).comparisons]
    assert [name.rpartition(", ")[2] for name in names] == ["ddp as dp2", "zero3 as dp2/zero3"]


@pytest.mark.parametrize(
    ("column", "one", "other"),
    [
        ("loader_workers", 0, 2),
        ("pin_memory", False, True),
        ("non_blocking", False, True),
        ("cast_on_device", False, True),
        ("channels_last", False, True),
        ("offload", "none", "optimizer"),
        ("compile", "none", "max-autotune"),
    ],
)
def test_runs_that_differ_in_an_option_are_two_variants(column, one, other) -> None:
    rows = [*runs(A, **{column: one}), *runs(SLOWER, **{column: other})]
    (found,) = compare_column(rows, column, STEP).comparisons
    assert (found.base_runs, found.other_runs, found.verdict) == (5, 5, "worse")
    (case,) = compare_files(runs(A, **{column: one}), runs(A, first=50, **{column: other}), STEP).comparisons
    assert case.base_runs == case.other_runs == 5
    engines = [*rows, *runs(A, first=200, engine="deepspeed", **{column: one})]
    (found,) = compare_column(engines, "engine", STEP).comparisons
    assert (found.base_runs, found.other_runs) == (5, 5), "the runs with the option are no part of the base"
