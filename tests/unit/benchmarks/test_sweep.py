"""The cases of a sweep: what flags and files make, and that the flags of a case make that case again."""

import random
import re
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paralab.benchmarks.report.compare import main as compare
from paralab.benchmarks.report.evidence import LEVEL
from paralab.benchmarks.report.paired import least_pairs
from paralab.benchmarks.run import CaseConfig, percent_of
from paralab.benchmarks.sweep import partners, variations
from paralab.benchmarks.sweep.bench import _table, main
from paralab.benchmarks.sweep.cases import Case, strategies
from paralab.benchmarks.sweep.options import SweepConfig, check
from paralab.benchmarks.sweep.order import FIRST, in_turn
from paralab.benchmarks.sweep.progress import progress
from paralab.benchmarks.sweep.runner import Runner
from paralab.errors import ConfigError, UsageError
from paralab.layout import Layout
from paralab.models import NAMES
from paralab.options.config import RunConfig
from paralab.options.flags import flags_of, resolve
from paralab.records.reading import read
from paralab.records.row import RunRecord
from paralab.records.writing import append
from tests.unit.synthetic_runs import START


def cases_of(*words: str) -> list[Case]:
    return [Case(*named) for named in strategies(resolve(words, config=SweepConfig))]


def made(case: Case) -> CaseConfig:
    return resolve(flags_of(case.config), config=CaseConfig)


def test_strategies_process_counts_and_engines_cross(capsys: pytest.CaptureFixture) -> None:
    cases = cases_of("--strategies", "single,ddp,tensor", "--nprocs", "1,2", "--engines", "torch,deepspeed")
    got = [(made(case).strategy, made(case).nproc, made(case).engine) for case in cases]
    assert got == [
        *(("single", 1, engine) for engine in ("torch", "deepspeed")),
        *(("ddp", 2, engine) for engine in ("torch", "deepspeed")),
        ("tensor", 2, "torch"),
    ]
    said = capsys.readouterr().out
    assert "tensor x2 deepspeed left out" in said


def test_strategies_asked_for_run_over_one_process_where_single_is_not_among_them() -> None:
    cases = cases_of("--strategies", "ddp,zero3,tensor", "--nprocs", "1")
    assert [(made(case).strategy, made(case).nproc) for case in cases] == [("ddp", 1), ("zero3", 1)]


def test_models_with_sizes_and_batches_cross() -> None:
    cases = cases_of(
        "--models", "gpt2:nano,resnet", "--strategies", "ddp", "--nprocs", "2", "--global-batch-sizes", "8,4"
    )
    got = [(made(case).model, made(case).size, made(case).global_batch_size) for case in cases]
    assert got == [("gpt2", "nano", 8), ("gpt2", "nano", 4), ("resnet", None, 8), ("resnet", None, 4)]
    assert len({case.name for case in cases}) == 4


def test_layouts_take_the_place_of_strategies(capsys: pytest.CaptureFixture) -> None:
    cases = cases_of("--layouts", "dp2.tp2,pp2/1f1b/mb4,tp64")
    assert [str(made(case).layout) for case in cases] == ["dp2.tp2", "pp2/1f1b/mb4"]
    assert "gpt2 tp64 left out" in capsys.readouterr().out


def test_a_yaml_file_with_lists(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("strategies: [ddp, zero3]\nnprocs: [2, 4]\nsteps: 7\n")
    cases = cases_of("--config", str(file))
    assert [(made(c).strategy, made(c).nproc, made(c).steps) for c in cases] == [
        ("ddp", 2, 7),
        ("zero3", 2, 7),
        ("ddp", 4, 7),
        ("zero3", 4, 7),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--strategies", "ddp,zero4"), r"--strategies zero4 is unknown \(did you mean"),
        (("--engines", "torch,megatron"), "--engines megatron is unknown"),
        (("--nprocs", "2,x"), "--nprocs is 'x': a whole number is needed"),
        (("--global-batch-sizes", "8,0"), "--global-batch-sizes 0 is not allowed: use a number at least 1"),
    ],
)
def test_lists_are_checked_part_by_part(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cases_of(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--strategy", "ddp"), "use --strategies"),
        (("--layout", "dp2"), "use --layouts"),
        (("--repeat", "3"), "--repeat beside --repeats"),
        (("--strategies", "ddp", "--layouts", "dp2"), "--strategies beside --layouts"),
        (("--nproc", "4", "--nprocs", "2"), "--nproc beside --nprocs"),
        (("--engine", "deepspeed", "--engines", "torch"), "--engine beside --engines"),
        (("--size", "20", "--models", "resnet"), "--size beside --models"),
        (("--vary", "compile", "--engines", "torch"), "--engines beside --vary"),
    ],
)
def test_options_that_would_change_nothing_are_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(resolve(words, config=SweepConfig))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--until-decided", "0%"), "is no margin: use a percentage such as 2%"),
        (("--until-decided", "two"), "use PERCENT"),
        (("--max-repeats", "9"), "--max-repeats is for --until-decided"),
        (("--max-time-s", "9"), "--max-time-s is for --until-decided"),
        (("--until-decided", "2%", "--max-repeats", "5"), "--max-repeats 5 is less than --repeats 6"),
    ],
)
def test_what_decides_is_checked(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(resolve(words, config=SweepConfig))


def decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratios: dict[str, float], *words: str
) -> list[tuple[str, int]]:
    """Run a sweep until it is decided, whose layouts take so many times the step time of the first; return the runs."""
    ran: list[tuple[str, int]] = []

    def run(runner: Runner, case: Case, repeat: int) -> RunRecord:
        layout = str(case.config.layout)
        ran.append((layout, repeat))
        time_s = 0.1 * ratios[layout] * (1 + random.Random(f"{layout} {repeat}").gauss(0, 0.01))
        return leave_row(
            runner, case, repeat, layout=layout, strategy=layout, step_time_p50_s=time_s,
            started_at=(START + timedelta(minutes=len(ran))).isoformat(),
            until_decided_percent=percent_of(case.config.until_decided),
        )  # fmt: skip

    monkeypatch.setattr(Runner, "_run", run)
    sweep = ["--layouts", ",".join(ratios), "--size", "tiny", "--until-decided", "2%", "--group", "mine", *words]
    assert main([*sweep, "--out", str(tmp_path / "rows.csv")]) == 0
    return ran


def test_repeats_go_on_until_each_comparison_is_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ran = decided(tmp_path, monkeypatch, {"dp2": 1.0, "dp2/zero1": 1.5, "dp2/zero3": 1.012})
    count = Counter(layout for layout, _ in ran)
    assert 8 <= count["dp2/zero1"] < count["dp2/zero3"] == count["dp2"] < 40, "what is decided is not run any more"
    orders = {tuple(layout for layout, repeat in ran if repeat == number) for number in range(6)}
    layouts = ("dp2", "dp2/zero1", "dp2/zero3")
    assert orders > {layouts} and {tuple(sorted(order)) for order in orders} == {layouts}
    out = capsys.readouterr().out
    assert re.search("slower (49|50)", out) and f"({count['dp2']} pairs)" in out
    assert "equivalent within 2%" in out or "slower 1." in out
    assert compare([str(tmp_path / "rows.csv"), "--by", "layout", "--equivalent-within", "2%"]) == 0
    shown = [line.split()[1:] for line in out.splitlines() if "pairs)" in line]
    assert shown == [line.split()[1:] for line in capsys.readouterr().out.splitlines() if "pairs)" in line]


@pytest.mark.parametrize(("words", "repeats"), [(("--max-repeats", "7"), 7), (("--max-time-s", "50"), 6)])
def test_a_budget_ends_what_is_not_decided(
    words: tuple[str, ...], repeats: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    a_minute_on = SimpleNamespace(time=lambda: time.time() + 60)  # as if the first six repeats had taken it
    monkeypatch.setattr("paralab.benchmarks.sweep.bench.time", a_minute_on)
    ran = decided(tmp_path, monkeypatch, {"dp2": 1.0, "dp2/zero1": 1.011}, *words)
    assert len(ran) == 2 * repeats
    assert "not enough evidence: about" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--until-decided", "2%", "--max-repeats", "6"),
        ("--vary", "compile", "--strategy", "ddp"),
        ("--nproc", "2", "--size", "nano"),
    ],
)
def test_what_fits_together_is_not(words: tuple[str, ...]) -> None:
    check(resolve(words, config=SweepConfig))


def test_the_earlier_name_of_vary_says_what_to_type() -> None:
    with pytest.raises(ConfigError, match=r"--levers is unknown \(did you mean --vary\?\)"):
        resolve(["--levers", "batch"], config=SweepConfig)


def test_options_are_varied_one_at_a_time() -> None:
    base = CaseConfig(size="nano", strategy="single", loader_workers=4)
    (_, same), *changed = variations.cases(base, ["precision", "checkpointing", "compile", "casting"])
    assert same == base and len(changed) >= 6
    for name, case in changed:
        (differing,) = {field for field in vars(case) if getattr(case, field) != getattr(base, field)}
        assert name == f"{differing} {getattr(case, differing)}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_options_that_change_nothing_here_are_left_out(capsys: pytest.CaptureFixture) -> None:
    names = [name for name, _ in variations.cases(CaseConfig(strategy="single"), ["pinned", "compile"])]
    assert names == ["as it is", "compile default", "compile max-autotune"]
    said = capsys.readouterr().out
    assert "pin_memory True, non_blocking True left out" in said and "compile reduce-overhead left out" in said
    assert "compile max-autotune-no-cudagraphs left out" in said


ROW = RunRecord(
    run_id="r",
    started_at="2026-01-31T12:00:00+00:00",
    strategy_requested="ddp",
    model="gpt2",
    status="ok",
    device="cpu",
    world_size=2,
    wall_s=5.0,
    samples_per_s=10.0,
    process_peak_bytes=1 << 30,
)


def leave_row(runner: Runner, case: Case, repeat: int, **columns: Any) -> RunRecord:
    """Append what the run of a case leaves."""
    commit, dirty = runner.code
    left: dict[str, Any] = {
        "group": runner.group,
        "repeat": repeat,
        "command": case.command,
        "git_commit": commit,
        "git_dirty": dirty,
    }
    row = replace(ROW, run_id=uuid4().hex, **left | columns)
    append(runner.out, row)
    return row


def run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict, *words: str
) -> tuple[list[tuple[str, int]], int]:
    """Run a sweep of two cases, whose second leaves `first`, and run it again; return what the second time ran."""
    ran: list[tuple[str, int]] = []

    def run(runner: Runner, case: Case, repeat: int) -> RunRecord:
        ran.append((case.name, repeat))
        return leave_row(runner, case, repeat, **first if "zero1" in case.name and len(ran) <= 2 else {})

    monkeypatch.setattr(Runner, "_run", run)
    sweep = ["--strategies", "ddp,zero1", "--nprocs", "2", "--size", "tiny", "--repeats", "1", *words]
    good = first.get("status", "ok") == "ok" and first.get("parity") is not False
    assert main([*sweep, "--out", str(tmp_path / "rows.csv")]) == (0 if good else 1)
    status = main([*sweep, "--out", str(tmp_path / "rows.csv")])
    again = ran[2:]
    assert main([*sweep, "--out", str(tmp_path / "rows.csv")]) == 0 and ran[2:] == again, "now all have their rows"
    return again, status


def test_a_run_that_has_its_row_is_not_taken_again_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ran, status = run_twice(tmp_path, monkeypatch, {})
    assert (ran, status) == ([], 0)
    captured = capsys.readouterr()
    assert "2 of these runs had their rows in" in captured.out
    assert "[1/2] repeat 1 of 1: gpt2 tiny ddp x2 (has its row already)" in captured.err
    ran, _ = run_twice(tmp_path, monkeypatch, {}, "--group", "another")
    assert ran == [], "of a group of its own"
    assert Counter(row.group for row in read(tmp_path / "rows.csv"))["another"] == 2


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ({"status": "crash", "reason": "the disk was full"}, "failed before, crash: run again"),
        ({"parity": False}, "parity failed before: run again"),
        ({"git_commit": "0123456789"}, "was run by commit 0123456: run again"),
        ({"git_dirty": None}, "was run by commit"),
    ],
    ids=["failed", "computed something else", "other code", "code that differs from its commit"],
)
def test_a_row_that_does_not_stand_is_run_again_and_the_old_one_is_kept(
    first: dict, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ran, status = run_twice(tmp_path, monkeypatch, first, "--group", "mine")
    assert (ran, status) == ([("gpt2 tiny zero1 x2", 0)], 0)
    captured = capsys.readouterr()
    assert said in captured.err
    assert "1 of these runs were run again; their earlier rows stay in" in captured.out
    assert len(read(tmp_path / "rows.csv")) == 3
    cells = [line.split()[4:6] for line in captured.out.splitlines() if line.startswith("gpt2 tiny zero1")]
    assert cells[-1] == ["1", "0"]


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "crash", "ended by SIGKILL"),
        ("raise SystemExit(3)", "crash", "ended with status 3, without a message"),
        (
            "import sys; print('paralab: error: no room\\n[   1.0 s] a phase', file=sys.stderr)",
            "crash",
            "paralab: error: no room",
        ),
        (
            "import subprocess; subprocess.Popen(['sh', '-c', 'echo $$ > \"$0\"; sleep 60', __file__ + '.pid']).wait()",
            "hang",
            "no result within --time-limit-s 3",
        ),
    ],
)
def test_a_run_that_leaves_no_row_gets_one_that_says_how_it_ended(
    program: str, status: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "benchmarks" / "run.py"
    script.parent.mkdir()
    script.write_text(program)
    monkeypatch.setattr("paralab.benchmarks.sweep.runner._ROOT", tmp_path)
    words = ["--strategies", "ddp", "--nprocs", "2", "--size", "tiny", "--out", str(tmp_path / "rows.csv")]
    limit_s = "3" if status == "hang" else "60"  # in which an interpreter has started, however busy the machine is
    config = resolve([*words, "--time-limit-s", limit_s], config=SweepConfig)
    (case,) = (Case(*named) for named in strategies(config))
    with progress(1, "") as bar:
        runner = Runner(config, [case], bar)
    for _ in range(1 if status == "hang" else 2):  # the second one does not take the first one's row for its own
        row = runner._run(case, 4)
    assert (row.status, row.reason, row.repeat, row.group) == (status, reason, 4, runner.group)
    assert [left.run_id for left in read(tmp_path / "rows.csv")][-1] == row.run_id
    assert len(read(tmp_path / "rows.csv")) == (1 if status == "hang" else 2)
    if status == "hang":
        process = int(script.with_name("run.py.pid").read_text())
        deadline_s = time.monotonic() + 10
        while psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline_s, "nothing of it is left"


def test_the_table_has_medians_beside_the_first_case(tmp_path: Path) -> None:
    config = resolve(
        ["--strategies", "ddp,zero1", "--nprocs", "2", "--out", str(tmp_path / "a.csv")], config=SweepConfig
    )
    cases = [Case(*named) for named in strategies(config)]
    with progress(1, "") as bar:
        runner = Runner(config, cases, bar)
    for number, speed in ((0, 10.0), (0, 20.0), (0, 60.0), (1, 30.0), (1, None)):
        row = replace(ROW, samples_per_s=speed, status="ok" if speed else "oom")
        runner.rows.setdefault(cases[number].name, []).append(row)
    lines = _table(cases, runner).splitlines()[2:]
    rows = [line.removeprefix(case.name).split()[:4] for case, line in zip(cases, lines, strict=True)]
    assert rows == [["3", "0", "20.0", "1.00"], ["2", "1", "30.0", "1.50"]]


def test_the_order_of_each_repeat_is_drawn_but_for_the_first() -> None:
    orders = ["".join(in_turn("abc", repeat, "group")) for repeat in range(20)]
    assert orders[0] == "abc" and len(set(orders)) >= 5
    assert ["".join(in_turn("abc", repeat, "other")) for repeat in range(20)] != orders


def test_no_case_is_before_another_in_each_of_the_repeats_that_pairs_need() -> None:
    assert least_pairs(1, LEVEL) == FIRST
    firsts = [[in_turn("ab", repeat, f"{number}")[0] for repeat in range(FIRST)] for number in range(300)]
    assert all(len(set(first)) == 2 for first in firsts)  # of fair coins 9 of these would be lost
    shares = [sum(first[repeat] == "a" for first in firsts) / 300 for repeat in range(1, FIRST)]
    assert all(0.4 < share < 0.6 for share in shares), "the coin stays fair"


def test_lines_count_what_was_added_and_say_how_long_the_rest_takes(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((100.0, 130.0, 160.0))
    monkeypatch.setattr("paralab.benchmarks.sweep.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with progress(2, "bench") as bar:
        bar.extend(2)
        bar.advance("there", taken=False)
        bar.advance("one")
        bar.advance("two")
        bar.advance("three")
    assert capsys.readouterr().err.splitlines() == [
        "[1/4] there", "[2/4] one  1 min 0 s left", "[3/4] two  30 s left", "[4/4] three",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "alone"),
    [
        (("--strategies", "single,ddp,zero1", "--nprocs", "2"), ["gpt2 tiny single x1"]),
        (("--layouts", "dp2,dp2/zero1"), []),
        (("--strategies", "ddp", "--nprocs", "2", "--engines", "torch,deepspeed"), []),
    ],
)
def test_what_can_never_be_decided_is_said_first(
    words: tuple[str, ...], alone: list[str], capsys: pytest.CaptureFixture
) -> None:
    cases = cases_of(*words, "--size", "tiny")
    capsys.readouterr()
    partners.check(cases, "2%")
    said = capsys.readouterr().out
    assert [line.split(" is compared with nothing")[0] for line in said.splitlines()] == alone


@pytest.mark.parametrize(
    "words",
    [
        ("--layouts", "dp2"),
        ("--layouts", "dp2,dp2"),  # twice the same
        ("--layouts", "dp1,dp2"),
        ("--layouts", "dp2", "--global-batch-sizes", "8,16"),
        ("--vary", "precision", "--strategy", "single"),
    ],
)
def test_a_sweep_in_which_nothing_can_be_decided_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="--until-decided 2%: no two cases of this sweep do the same work"):
        main([*words, "--size", "tiny", "--until-decided", "2%"])


def test_rows_that_have_no_place_are_refused_before_a_case_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--strategies", "ddp,zero1", "--nprocs", "2", "--size", "tiny", "--out", "/dev/null/rows.csv"]
    with pytest.raises(UsageError, match=r"rows\.csv cannot be written .*: choose another place with --out"):
        main(words)
    assert "repeat 1" not in capsys.readouterr().err


def test_other_code_is_another_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = resolve(["--strategies", "ddp", "--nprocs", "2", "--size", "tiny"], config=SweepConfig)
    groups = set()
    for commit in ("a" * 40, "b" * 40, "b" * 40):
        monkeypatch.setattr("paralab.benchmarks.sweep.runner.repository_state", lambda commit=commit: (commit, False))
        with progress(1, "") as bar:
            groups.add(Runner(config, [Case(*named) for named in strategies(config)], bar).group)
    assert len(groups) == 2


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ({"status": "oom", "reason": "no memory"}, "batch 64 did not run: oom, no memory"),
        ({"wall_s": 200.0}, "no batch above 64: twice as many would take about 400 s, more than --time-limit-s 300"),
        # 2 GiB more on two processes than the one before, and so 4 more in the next step
        ({"process_peak_bytes": 2 << 30}, "no batch above 64: twice as many would take about 8.0 GiB, there are 7.0"),
    ],
    ids=["it failed", "it takes long", "it would not fit"],
)
def test_the_batch_is_doubled_until_it_does_not_fit(
    end: dict, said: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variations, "memory_allowed_bytes", lambda: 7 << 30)
    ran = []

    def run(named: variations.Named) -> RunRecord:
        ran.append(named[1].global_batch_size)
        return replace(ROW, **end) if ran[-1] == 64 else ROW

    base = CaseConfig(layout=Layout.parse("dp16"))
    found = [case.global_batch_size for _, case in variations.batches(base, run, time_limit_s=300)]
    assert ran == [16, 32, 64]
    assert found == (ran if end.get("status", "ok") == "ok" else ran[:-1])
    assert said in capsys.readouterr().out


def test_the_first_batch_is_one_that_the_division_takes() -> None:
    cases = []

    def fail(named: variations.Named) -> RunRecord:
        cases.append(named[1])
        return replace(ROW, status="oom", reason="")

    base = CaseConfig(layout=Layout.parse("dp3"), accumulation=2)
    assert list(variations.batches(base, fail, time_limit_s=300)) == []
    assert [(case.global_batch_size, case.parity) for case in cases] == [(12, False)]


def test_a_batch_that_does_not_fit_ends_the_doubling_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run(runner: Runner, case: Case, repeat: int) -> RunRecord:
        ran.append((case.name, repeat))
        return leave_row(runner, case, repeat, status="oom" if case.name == "batch 32" else "ok")

    monkeypatch.setattr(Runner, "_run", run)
    words = ["--vary", "batch", "--strategy", "single", "--repeats", "2", "--out", str(tmp_path / "rows.csv")]
    assert main(words) == 0
    firsts = ["as it is", "batch 8", "batch 16", "batch 32"]
    # 16 samples are what there is as it is: one run of this work in the second repeat, whose order is drawn
    assert ran[:4] == [(name, 0) for name in firsts]
    assert sorted(ran[4:]) in ([("as it is", 1), ("batch 8", 1)], [("batch 16", 1), ("batch 8", 1)])


@settings(max_examples=50, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "model": st.sampled_from(NAMES),
            "strategy": st.sampled_from(("ddp", "zero3", None)),
            "betas": st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
            "clip_norm": st.one_of(st.none(), st.floats(1e-3, 1e3)),
            "compile": st.sampled_from(["none", "default"]),
            "parity": st.booleans(),
            "checkpointing": st.sampled_from(("none", "full", "3")),
            "global_batch_size": st.one_of(st.none(), st.integers(1, 1000)),
        },
    )
)
def test_flags_of_a_case_make_it_again(values: dict) -> None:
    case = CaseConfig(**values)
    assert resolve(flags_of(case), config=CaseConfig) == case
    assert isinstance(case, RunConfig)
