"""`paralab config`: every option with the value that the command would use, and where it came from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paralab import cli
from paralab.benchmarks import config
from paralab.benchmarks.run import CommandConfig
from paralab.commands import train
from paralab.options.settings import plain
from paralab.planning.resolve import resolve
from paralab.processes import launch
from paralab.processes.allowed import default_threads
from paralab.processes.rank import Rank
from paralab.training.options import TrainConfig

Show = Callable[..., dict[str, Any]]
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "launch", lambda *_, **__: pytest.fail("processes were started"))


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    def show(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.main(["config", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["options"]

    return show


def origins(options: dict[str, Any], *names: str) -> list[tuple[Any, ...]]:
    """Return value, source and name of these options."""
    return [tuple(options[name].get(key) for key in ("value", "source", "name")) for name in names]


def test_flag_over_file_over_default_and_what_is_chosen(show: Show, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('model = "resnet"\nsteps = 7\nclip_norm = "none"\n')
    options = show("run", "--config", str(file), "--steps", "9", "--strategy", "fsdp", "--nproc", "4")
    assert origins(options, "model", "steps", "clip_norm", "strategy", "nproc") == [
        ("resnet", "file", str(file)),
        (9, "flag", None),
        (None, "file", str(file)),
        ("zero3", "flag", None),
        (4, "flag", None),
    ]
    assert origins(options, "layout", "global_batch_size", "engine", "data", "size", "n_classes", "norm") == [
        (value, "chosen", None) for value in ("dp4/zero3", 64, "torch", "mnist", "20", 10, "syncbatch")
    ]
    assert options["threads"] == {"value": default_threads(4), "source": "chosen"}
    assert origins(options, "seed", "backend", "out") == [
        (0, "default", None),
        ("gloo", "chosen", None),
        (None, "default", None),
    ]


def test_the_values_are_those_of_the_run(show: Show) -> None:
    words = ["--model", "gpt2", "--size", "tiny", "--layout", "dp2.pp2/1f1b/mb4", "--precision", "bf16"]
    options = show("run", *words)
    run = resolve(config.read(words, config=CommandConfig)[0]).run
    chosen = {"data", "tokenizer", "seq_len", "threads", "backend", "pin_memory", "non_blocking"}
    assert {name: one["value"] for name, one in options.items() if name not in chosen} == {
        name: plain(value) for name, value in vars(run).items() if name not in chosen
    }


def test_a_preset_and_the_run_that_is_continued(show: Show, tmp_path: Path) -> None:
    options = show("train", "--preset", "mnist", "--steps", "5", "--out", str(tmp_path))
    assert origins(options, "learning_rate", "steps", "engine", "layout", "seed") == [
        (4e-3, "preset", "mnist"),
        (5, "flag", None),
        ("torch", "chosen", None),
        ("dp1", "chosen", None),
        (0, "default", None),
    ]
    TrainConfig(model="gpt2", size="tiny", steps=30, seed=3).save(tmp_path / "config.toml")
    options = show("train", "--resume", "--out", str(tmp_path), "--seed", "4", "--strategy", "ddp", "--nproc", "2")
    assert origins(options, "size", "steps", "seed", "layout") == [
        ("tiny", "run", str(tmp_path)),
        (30, "run", str(tmp_path)),
        (4, "flag", None),
        ("dp2", "chosen", None),
    ]


def test_sizes_that_are_taken_from_weights(show: Show, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 257}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path)
    options = show("train", "--init-from", str(tmp_path), "--out", str(tmp_path / "run"))
    assert origins(options, "size", "seq_len") == [
        ("1x8x2v257", "weights", str(tmp_path)),
        (16, "weights", str(tmp_path)),
    ]


@pytest.mark.parametrize("command", ["run", "train", "tour", "verify", "overhead"])
def test_what_the_launcher_decides(command: str, show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    options = show(command, "--size", "tiny", "--threads", "1")
    assert origins(options, "nproc", "threads") == [(2, "launcher", "torchrun"), (1, "flag", None)]
    assert options["strategy"]["source"] == "chosen"


def test_the_engine_of_the_launcher(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "CROSS_SIZE": "1"}).items():
        if name != "TORCHELASTIC_RUN_ID":
            monkeypatch.setenv(name, value)
    options = show("run", "--size", "tiny", "--strategy", "zero2")
    assert origins(options, "engine", "ds_config") == [("deepspeed", "launcher", "deepspeed"), (None, "default", None)]


def test_one_rank_of_a_launcher_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    assert cli.main(["config", "run", "--size", "tiny"]) == 0
    assert capsys.readouterr().out == ""


def test_several_cases_have_several_values(show: Show) -> None:
    options = show("bench", "--size", "tiny", "--strategies", "ddp,zero1", "--nprocs", "2,4", "--engines", "torch")
    assert options["layout"]["values"] == ["dp2", "dp2/zero1", "dp4", "dp4/zero1"]
    assert origins(options, "engines", "size") == [(["torch"], "flag", None), ("tiny", "flag", None)]
    options = show("verify", "--strategy", "tensor", "--nproc", "2", "--accumulation", "4")
    assert (options["accumulation"]["values"], options["accumulation"]["source"]) == ([1, 2], "chosen")
    assert origins(options, "steps", "size", "precision") == [
        (3, "chosen", None),
        ("tiny", "chosen", None),
        ("fp32", "chosen", None),
    ]
    assert show("tour", "--size", "tiny", "--nproc", "2")["strategy"]["values"][:2] == ["single", "ddp"]


@pytest.mark.parametrize("command", config.COMMANDS)
def test_the_table_has_every_option_in_80_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "tiny"] + (["--nodes", "1,2"] if command == "scale" else [])
    planned = config.COMMANDS[command](words, Rank.from_env())
    capsys.readouterr()
    assert cli.main(["config", command, *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    listed = [line.split()[0] for line in lines if line.startswith("  --")]
    assert sorted(listed) == sorted(f"--{name.replace('_', '-')}" for name in vars(planned.requested))


def test_the_folder_of_a_run_is_not_made(show: Show, tmp_path: Path) -> None:
    show("train", "--preset", "alice", "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "none given: use one of run, train"),
        (["trian"], "trian is not one (did you mean train?)"),
        (["run", "--stpes", "3"], "--stpes is unknown (did you mean --steps?): see paralab run --help"),
        (["run", "--layout", "dp2", "--nproc", "3"], "3 requested"),
        (["verify", "--steps", "3"], "--steps of paralab verify has no use"),
        (["overhead", "--out", "x.csv"], "--out of paralab overhead has no use"),
        (["tour", "--strategy", "ddp"], "paralab tour runs every strategy"),
    ],
)
def test_what_the_command_refuses_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_help_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["config", "train", "--help"])
    assert capsys.readouterr().out.startswith("usage: paralab train") and train.__doc__
