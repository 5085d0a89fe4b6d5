"""RunConfig: where values come from, what is refused, and that a saved config is the same config."""

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paralab.benchmarks.peers import PeersConfig
from paralab.benchmarks.sweep.options import SweepConfig
from paralab.commands.verify import VerifyConfig
from paralab.errors import ConfigError, LayoutError, UsageError
from paralab.layout import Layout
from paralab.layout.strategies import STRATEGIES
from paralab.options.arguments import SYNONYMS
from paralab.options.config import RunConfig
from paralab.options.files import load
from paralab.options.flags import make_parser, resolve
from paralab.options.option import option
from paralab.training.options import TrainConfig


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "run.toml", "steps = 7\nseed = 3\nclip_norm = 'none'\n")
    config: RunConfig = resolve(["--seed", "5", "--config", str(file)])
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
    config: RunConfig = resolve([], file=write(tmp_path, name, text))
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


def words_of(annotation: Any) -> set[str]:
    """Return the words of the Literal inside an annotation such as `list[Precision] | None`; none without one."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return set().union(*map(words_of, get_args(annotation)))


@pytest.mark.parametrize("config", [RunConfig, TrainConfig, SweepConfig, VerifyConfig, PeersConfig])
def test_the_choices_of_an_option_are_the_words_of_its_type(config: type[RunConfig]) -> None:
    typed = {declared: words for declared in fields(config) if (words := words_of(declared.type))}
    assert {"engine", "precision", "compile", "optimizer"} <= {declared.name for declared in typed}
    for declared, words in typed.items():
        choices = set(declared.metadata["choices"])
        # a command may offer fewer than every run
        assert choices == words or (config is not RunConfig and choices < words), declared.name
        assert declared.default in choices or declared.default is None, declared.name


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
        (["--checkpointing", "0"], r"none\|full\|selective\|offload\|N"),
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
        (["--layout", "dp2/zero9"], "ZeRO"),
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
    ("name", "text", "says"),
    [
        ("a.yaml", "steps: 3\nseed: 1\nsteps: 4\n", "key 'steps' occurs twice, the second time in line 3"),
        ("a.yaml", "a: {b: 1,\n b: 2}\n", "key 'b' occurs twice, the second time in line 2"),
        ("a.json", '{\n// a\n"a": 1}', "JSON has no comments, remove this one"),
        ("a.json", '{"a": 1, # one\n"b": 1}', "JSON has no comments, remove this one"),
        ("a.json", '{"a": [1,\n],\n "b": 1}', "remove the comma before the bracket"),
        ("a.json", '{"a": 1,\n}', "remove the comma before the bracket"),
        ("a.json", "{'a': 1}", "write double quotes"),
        ("a.json", '{"a": True}', "write true, false or null"),
        ("a.json", '{"a": {"b": 1},\n "b": 1,\n\n "a": 2}', "key 'a' occurs twice, the second time in line 4"),
        (
            "a.json",
            '{"x": [{"a": 1}, {"a": 2}],\r\n "a": 3,\r\n"a": 4}',
            "key 'a' occurs twice, the second time in line 3",
        ),
        ("a.toml", "steps = 3\nsteps = 4\n", "line 2"),
        ("a.yaml", "steps: 010\n", "010 in line 1 is octal to some programs and decimal to others: write 10 or 0o10"),
        ("a.yaml", "distributed_type: FSDP\n", "'distributed_type' .*type accelerate launch --config_file .*a.yaml"),
        ("a.json", '{"zero_optimization": {"stage": 2}}', "'zero_optimization.stage' .*type --ds-config .*a.json"),
        ("a.yaml", "steps: 1:30\n", "steps in .* is '1:30': a whole number is needed"),
        ("a.yaml", "streaming: yes\n", "streaming in .* is 'yes': true or false is needed"),
        ("a.json", '{"seed": 1' + "0" * 400 + "}", "seed in .* 1.00000e.400 is not allowed"),
        ("a.yaml", "seed: 2026-01-31\n", "seed in .* is '2026-01-31': a whole number is needed"),
        ("a.yaml", "\udcff\udcfes\0", "is not UTF-8 text: save it again as UTF-8"),
        ("a.yaml", "[" * 20_000, "is nested too deeply"),
        ("a.json", "[" * 20_000, "is nested too deeply"),
        ("a.toml", "steps = " + "[" * 20_000, "is nested too deeply"),
    ],
)
def test_a_file_with_two_meanings_is_refused_in_one_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    file = tmp_path / name
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=says) as caught:
        resolve(["--config", str(file)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"), [("a.toml", "steps = 7"), ("a.YAML", "steps: 7"), ("a.json", '{"steps": 7}')]
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_and_line_ends_of_windows_change_nothing(
    tmp_path: Path, name: str, text: str, mark: str
) -> None:
    file = tmp_path / name
    file.write_bytes(f"{mark}{text}\r\n".encode())
    assert load(file) == {"steps": 7}


def test_yaml_is_read_as_version_1_2_has_it(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: on\nb: 0o17\nc: 1e-4\nd: ~\ne: 0x10\nf: -5\nbase: &b {x: 1}\nmore: {<<: *b, x: 2}\n")
    want = {"a": "on", "b": 15, "c": 1e-4, "d": None, "e": 16, "f": -5, "base": {"x": 1}, "more": {"x": 2}}
    assert load(file) == want


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--lr", "--learning-rate"),
        ("--batch-size", "--global-batch-size"),
        ("--epochs", "--steps"),
        ("--gpus", "--nproc"),
        ("--num_gpus", "--nproc"),
        ("--zero", "--strategy zero1"),
        ("--fp16", "--precision fp16"),
        ("--learning_rate", "--learning-rate"),
        ("--learnin", "--learning-rate"),
    ],
)
def test_names_of_other_programs_say_what_to_type(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"{typed} is unknown \(did you mean {meant}"):
        resolve([typed, "1"])


def test_every_name_of_another_program_stands_for_an_option_that_some_command_has() -> None:
    configs = (RunConfig, TrainConfig, SweepConfig, PeersConfig)
    known = {name for config in configs for name in make_parser(config)._option_string_actions}
    assert {typed.split()[0].rstrip(",") for typed in SYNONYMS.values()} <= known


@pytest.mark.parametrize(
    "words",
    [
        ["--steps", "9" * 30],
        ["--steps", "9" * 5000],
        ["--seed", "1e30"],
        ["--timeout-s", "1e300"],
        ["--timeout-s", "inf"],
        ["--learning-rate", "nan"],
        ["--learning-rate", "9" * 5000],
        ["--nproc", "100000000"],
        ["--layout", "dp99999999999999999999"],
        ["--layout", "dp9999.tp9999"],
        ["--accumulation", "100000000"],
        ["--loader-workers", "100000"],
    ],
    ids=lambda words: words[0] + words[1][:20],
)
def test_absurd_numbers_are_refused_in_one_line(words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(words)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_there_is_no_negative_zero() -> None:
    assert math.copysign(1, resolve(["--learning-rate", "-0.0"]).learning_rate) == 1
