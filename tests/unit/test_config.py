"""RunConfig: where values come from, what is refused, and that a saved config is the same config."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.config import STRATEGIES, RunConfig, load, make_parser, option, resolve
from parallel.errors import ConfigError, LayoutError
from parallel.layout import Layout


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "run.toml", "steps = 7\nseed = 3\nclip_norm = 'none'\n")
    config = resolve(["--seed", "5", "--config", str(file)])
    assert (config.steps, config.seed, config.clip_norm) == (7, 5, None)
    assert config == replace(RunConfig(), steps=7, seed=5, clip_norm=None)


def test_the_file_may_be_given_by_the_program(tmp_path: Path) -> None:
    file = write(tmp_path, "run.toml", "steps = 7\n")
    assert resolve([], file=file).steps == 7


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.toml", 'layout = "dp2.tp2"\nlearning_rate = 1e-4\nbetas = [0.8, 0.9]\ncheckpointing = "2"\n'),
        ("run.yaml", "layout: dp2.tp2\nlearning_rate: 1e-4\nbetas: [0.8, 0.9]\ncheckpointing: 2\n"),
        ("run.json", '{"layout": "dp2.tp2", "learning_rate": 1e-4, "betas": [0.8, 0.9], "checkpointing": 2}'),
    ],
)
def test_every_form_of_file_gives_what_flags_give(tmp_path: Path, name: str, text: str) -> None:
    flags = ["--layout", "dp2.tp2", "--learning-rate", "1e-4", "--betas", "0.8,0.9", "--checkpointing", "2"]
    config = resolve([], file=write(tmp_path, name, text))
    assert config == resolve(flags)
    assert (config.layout, config.betas, config.checkpoint_every) == (Layout(dp=2, tp=2), (0.8, 0.9), 2)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(
    st.builds(
        RunConfig,
        data=st.none() | names,
        out=st.none() | names,
        layout=st.sampled_from([None, Layout(), Layout(dp=2, tp=2, pp=2, zero=1, micro_batches=4)]),
        strategy=st.sampled_from([None, *STRATEGIES]),
        learning_rate=st.floats(0, 1e3),
        clip_norm=st.none() | st.floats(1e-9, 1e9),
        betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
        pin_memory=st.sampled_from([None, True, False]),
        compile=st.sampled_from(["none", "default", "max-autotune"]),
    )
)
def test_a_saved_config_reads_back_to_itself(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> None:
    folder = tmp_path_factory.mktemp("config")
    for name in ("run.toml", "run.json"):
        config.save(folder / name)
        assert RunConfig.from_dict(load(folder / name)) == config
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_option_has_a_flag_with_help_in_a_group() -> None:
    text = make_parser().format_help()
    for declared in fields(RunConfig):
        assert f"--{declared.name.replace('_', '-')}" in text
        assert declared.metadata["help"]
        assert f"\n{declared.metadata['group']}:\n" in text


def test_help_leaves_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        resolve(["--help"], prog="paralab verify")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage: paralab verify")


@pytest.mark.parametrize("argv", [["--local_rank=3"], ["--local-rank", "3"], ["--local_rank", "0", "--seed", "0"]])
def test_the_rank_flag_of_launchers_is_ignored(argv: list[str]) -> None:
    assert resolve(argv) == RunConfig()


def test_fsdp_is_another_name_of_zero3() -> None:
    assert resolve(["--strategy", "fsdp"]).strategy == "zero3"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--stategy", "zero3"], r"--stategy is unknown \(did you mean --strategy\?\)"),
        (["--stategy=zero3"], r"--stategy is unknown \(did you mean --strategy\?\)"),
        (["--global_batch_size", "8"], r"did you mean --global-batch-size\?"),
        (["--strat", "ddp"], r"--strat is unknown \(did you mean --strategy\?\)"),
        (["--strategy", "zreo3"], r"--strategy zreo3 is unknown \(did you mean zero3\?\)"),
        (["--steps"], "--steps needs a value, N"),
        (["--compile", "--steps", "3"], "--compile needs a value, none|default|reduce-overhead|max-autotune"),
        (["zero3"], "'zero3' does not belong"),
        (["--steps", "ten"], "whole number"),
        (["--steps", "0"], "at least 1"),
        (["--seed", "-1"], "at least 0"),
        (["--learning-rate", "nan"], "at least 0"),
        (["--learning-rate", "inf"], "at least 0"),
        (["--clip-norm", "0"], "above 0"),
        (["--betas", "0.9"], "0.9,0.95"),
        (["--betas", "0.9,1"], "below 1"),
        (["--min-lr-ratio", "2"], "at least 0 and at most 1"),
        (["--checkpointing", "0"], r"none\|full\|N"),
        (["--data", ""], "a name is needed"),
        (["--config", "run.ini"], ".toml, .yaml or .json"),
        (["--config", "missing.toml"], "No such file"),
    ],
)
def test_a_bad_flag_is_refused_in_one_line(argv: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        resolve(argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stategy = 'ddp'", r"'stategy' in .*run.toml is unknown \(did you mean strategy\?\)"),
        ("[optimizer]\nlerning_rate = 1", r"'optimizer.lerning_rate' .*did you mean learning_rate\?.* not nested"),
        ("[a.b]\nstepz = 1", r"'a.b.stepz' .*did you mean steps\?.* not nested"),
        ("global-batch-size = 8", r"did you mean global_batch_size\?"),
        ("steps = 1.5", "whole number"),
        ("steps = true", "whole number"),
        ("channels_last = 'yes'", "true or false"),
        ("learning_rate = [1]", "a number is needed"),
        ("model = {}", "a name is needed"),
        ("steps = ", "not valid"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(tmp_path: Path, text: str, says: str) -> None:
    file = write(tmp_path, "run.toml", text)
    with pytest.raises(ConfigError, match=says) as caught:
        resolve([], file=file)
    assert "run.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [1\n", "only words\n"])
def test_a_yaml_file_that_is_not_a_table_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load(write(tmp_path, "run.yaml", text))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--layout", "dp2.tp2", "--nproc", "2"], "--nproc 4"),
        (["--layout", "pp4/1f1b/mb2"], "pp4/1f1b/mb4"),
        (["--layout", "dp2/zero9"], "ZeRO"),
        (["--layout", "dp3", "--global-batch-size", "8"], "--global-batch-size 6 or 9"),
        (["--layout", "dp2", "--accumulation", "3", "--global-batch-size", "8"], "--global-batch-size 6 or 12"),
    ],
)
def test_a_layout_that_cannot_run_is_refused_before_anything_starts(argv: list[str], says: str) -> None:
    with pytest.raises(LayoutError, match=says):
        resolve(argv)


def test_a_config_made_in_code_has_the_same_checks() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        RunConfig(steps=0)
    with pytest.raises(LayoutError, match="--nproc 2"):
        replace(RunConfig(nproc=4), layout=Layout(dp=2))


@dataclass(frozen=True, kw_only=True)
class Longer(RunConfig):
    save_every: int | None = option(None, "steps between checkpoints", group="checkpoints", at_least=1)


def test_a_command_adds_options_by_subclassing(tmp_path: Path) -> None:
    file = write(tmp_path, "run.toml", "save_every = 4\nsteps = 8\n")
    config = resolve(["--steps", "9"], file=file, config=Longer)
    assert config == Longer(save_every=4, steps=9)
    with pytest.raises(ConfigError, match="'save_every'"):
        resolve([], file=file)


@pytest.mark.parametrize(
    ("written", "mode"), [("false", "none"), ("true", "default"), ('"max-autotune"', "max-autotune")]
)
def test_compile_was_once_true_or_false_in_files(written: str, mode: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f"compile = {written}\n")
    assert resolve(["--config", str(file)]).compile == mode


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.yaml", "steps: 2\nsize: tiny\nsteps: 3\n"),
        ("run.yaml", "outer:\n  steps: 2\n  steps: 3\n"),
        ("run.json", '{"steps": 2, "steps": 3}'),
        ("run.json", '{"outer": {"steps": 2, "steps": 3}}'),
    ],
)
def test_a_key_that_comes_twice_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is not valid: key 'steps' comes twice"):
        load(write(tmp_path, name, text))


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("1:30", "1:30"), ("0x1F", 31), ("0o17", 15), ("-5", -5), ("1e-4", 1e-4), ("1:30.5", "1:30.5")],
)
def test_numbers_of_yaml_are_those_of_version_1_2(tmp_path: Path, text: str, value: object) -> None:
    got = load(write(tmp_path, "run.yaml", f"key: {text}\n"))["key"]
    assert got == value and type(got) is type(value)


def test_a_yaml_merge_may_be_overruled(tmp_path: Path) -> None:
    text = "base: &base {steps: 1}\nrun:\n  <<: *base\n  steps: 2\n"
    assert load(write(tmp_path, "run.yaml", text))["run"] == {"steps": 2}


@pytest.mark.parametrize("name", ["run.yaml", "run.json", "run.toml"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path, name: str) -> None:
    text = {"run.yaml": "steps: 2", "run.json": '{"steps": 2}', "run.toml": "steps = 2"}[name]
    assert load(write(tmp_path, name, f"\ufeff{text}\n")) == {"steps": 2}


def test_a_file_that_is_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        load(write(tmp_path, "run.json", '{"a":' * 100_000 + "1" + "}" * 100_000))
