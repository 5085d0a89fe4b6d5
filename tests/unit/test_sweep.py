"""The cases of a sweep: what flags and files make, and that the flags of a case make that case again."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.run import CaseConfig
from benchmarks.sweep import Case, SweepConfig, check, flags_of, lever_cases, strategy_cases
from parallel.config import RunConfig, resolve
from parallel.errors import ConfigError


def cases_of(*words: str) -> list[Case]:
    return list(strategy_cases(resolve(words, config=SweepConfig)))


def made(case: Case) -> CaseConfig:
    return resolve(case.flags, config=CaseConfig)


def test_strategies_process_counts_and_engines_cross(capsys: pytest.CaptureFixture) -> None:
    cases = cases_of("--strategies", "single,ddp,tensor", "--nprocs", "1,2", "--engines", "torch,deepspeed")
    got = [(made(case).strategy, made(case).nproc, made(case).engine) for case in cases]
    assert got == [("single", 1, "torch"), ("ddp", 2, "torch"), ("ddp", 2, "deepspeed"), ("tensor", 2, "torch")]
    said = capsys.readouterr().out
    assert "single x1 deepspeed left out: --engine deepspeed cannot run layout dp1" in said
    assert "tensor x2 deepspeed left out" in said


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
        (("--levers", "compile", "--engines", "torch"), "--engines beside --levers"),
    ],
)
def test_options_that_would_change_nothing_are_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(resolve(words, config=SweepConfig))


@pytest.mark.parametrize(
    "words", [(), ("--levers", "compile", "--strategy", "ddp"), ("--nproc", "2", "--size", "nano")]
)
def test_what_fits_together_is_not(words: tuple[str, ...]) -> None:
    check(resolve(words, config=SweepConfig))


def test_levers_change_one_thing_at_a_time() -> None:
    config = resolve(["--levers", "precision,checkpointing", "--size", "nano"], config=SweepConfig)
    base, *changed = [made(case) for case in lever_cases(config)]
    assert base.strategy == "single"
    for case in changed:
        differing = {name for name in vars(case) if getattr(case, name) != getattr(base, name)}
        assert len(differing) == 1, differing


@settings(max_examples=50, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "model": st.sampled_from(("gpt2", "resnet", "diffusion")),
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
