"""What is requested becomes work, or one line that says what was got, what is needed and what to type."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from paralab import cli
from paralab.axes.check import check_split
from paralab.benchmarks import tour as tour_command
from paralab.benchmarks.tour import TourConfig
from paralab.benchmarks.tour_worker import choose
from paralab.commands import verify as verify_command
from paralab.commands.verify import VerifyConfig
from paralab.commands.verify_cases import cases
from paralab.errors import ConfigError, DataError, LayoutError, UsageError, WorldError
from paralab.layout import Layout
from paralab.layout.strategies import STRATEGIES, name_of
from paralab.models import SPECS
from paralab.models.configs import ImageConfig
from paralab.options.config import RunConfig
from paralab.options.flags import resolve as read_config
from paralab.planning import requested_layout
from paralab.planning.requested_layout import alone
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.rank import Rank
from paralab.running import task


def _tiny_size(model: str) -> str | None:
    return SPECS[model].tiny_size if model in SPECS else None


def asked(*, layout: str | None = None, **options: Any) -> Work:
    options = {"model": "gpt2", **options}
    parsed = Layout.parse(layout) if layout else None
    return resolve(RunConfig(**{"size": _tiny_size(options["model"]), **options, "layout": parsed}))


@pytest.mark.parametrize(
    ("options", "got", "needed", "typed"),
    [
        # a world size that the degrees do not multiply to
        ({"layout": "dp2.tp2", "nproc": 3}, "3 requested", "needs dp2 x tp2 = 4 processes", "--nproc 4"),
        ({"strategy": "2d", "nproc": 5}, "5 requested", "tensor 2 x pipeline", "--nproc"),
        ({"strategy": "3d", "nproc": 6}, "6 requested", "8, 12, 16", "--nproc"),
        ({"strategy": "single", "nproc": 2}, "--nproc 2", "--strategy single", "--nproc 1"),
        ({"strategy": "tensor", "nproc": 1}, "2 processes or more", "--nproc 2", "--strategy single"),
        ({"strategy": "ddp", "layout": "dp1/zero3"}, "--strategy ddp", "which is zero3", "--strategy zero3"),
        ({"strategy": "tensor", "layout": "dp1"}, "--strategy tensor", "which is single", "--strategy single"),
        # tp that does not divide
        ({"layout": "tp3"}, "tp=3", "n_heads=4", "1, 2, 4"),
        ({"layout": "tp8"}, "tp=8", "n_heads=4", "1, 2, 4"),
        ({"strategy": "tensor", "nproc": 6}, "tp=6", "n_heads=4", "1, 2, 4"),
        ({"model": "llama", "layout": "tp8"}, "tp=8", "n_kv_heads=4", "use a tp of 1, 2, 4"),
        ({"model": "resnet", "layout": "tp3"}, "tp=3", "width=8", "1, 2, 4, 8"),
        ({"model": "resnet", "norm": "group", "layout": "tp8"}, "tp=8", "groups=4", "1, 2, 4"),
        ({"model": "diffusion", "size": "tiny-dit", "layout": "tp8"}, "tp=8", "n_heads=4", "1, 2, 4"),
        ({"layout": "tp4/sp", "seq_len": 6}, "tp=4", "seq_len=6", "another tp, or no sp"),
        ({"model": "resnet", "layout": "tp2/sp"}, "sp", "resnet has no sequence-parallel", "leave sp out"),
        # more stages than blocks
        ({"layout": "pp9/gpipe"}, "9 pipeline stages", "8 blocks", "pp8 or less"),
        ({"layout": "pp9/1f1b/mb2", "global_batch_size": 7}, "9 pipeline stages", "8 blocks", "pp8 or less"),  # first
        ({"layout": "pp2/interleavedx6/mb2"}, "12 pipeline stages", "8 blocks", "fewer stages a rank"),
        ({"layout": "pp8/zbv"}, "16 pipeline stages", "8 blocks", "pp4 or less"),
        ({"layout": "pp9/gpipe/first2/last2"}, "9 pipeline stages", "8 blocks", "pp6 or less"),
        ({"model": "resnet", "layout": "pp16/gpipe"}, "16 pipeline stages", "8 blocks", "pp8 or less"),
        ({"layout": "pp4/gpipe/first9"}, "first9 with the 8 layers", "other 3 stages needs one", "first5 or less"),
        ({"layout": "pp4/gpipe/first4/last3"}, "first4 and last3", "other 2 stages needs one", "add up to 6 or less"),
        ({"layout": "pp3/gpipe/last8"}, "last8 with the 8 layers", "other 2 stages needs one", "last6 or less"),
        ({"layout": "pp2/gpipe/last8"}, "last8 with the 8 layers", "the other stage needs one", "last7 or less"),
        ({"layout": "pp2/gpipe/first3/last4"}, "first3 and last4", "two stages have all", "first3 alone"),
        # fewer micro-batches than stages, or not a multiple
        ({"layout": "pp4/1f1b/mb2"}, "2 micro-batches for 4 stages", "at least 4", "pp4/1f1b/mb4"),
        ({"layout": "pp2/dualpipev/mb3"}, "3 micro-batches for 4 stages", "at least 4", "pp2/dualpipev/mb4"),
        ({"layout": "pp4/interleaved/mb6"}, "6 micro-batches", "a multiple of 4", "pp4/interleaved/mb8"),
        # a batch that does not divide
        ({"layout": "dp3", "global_batch_size": 16}, "global batch 16", "dp 3", "--global-batch-size 15 or 18"),
        ({"layout": "dp2", "accumulation": 5, "global_batch_size": 16}, "16", "accumulation 5", "10 or 20"),
        (
            {"strategy": "pipeline", "nproc": 4, "global_batch_size": 12},
            "12",
            "micro-batches 8",
            "or --layout pp4/1f1b/mb6",
        ),
        # names
        ({"size": "tinny"}, "tinny", "did you mean tiny?", "use one of tiny, nano, small"),
        ({"strategy": "zreo1"}, "zreo1", "did you mean zero1?", "use one of single, ddp"),
        ({"model": "gtp2"}, "gtp2", "did you mean gpt2?", f"use one of {', '.join(SPECS)}"),
        # two answers to one question, and options of other models
        ({"strategy": "ddp", "layout": "tp2"}, "--strategy ddp", "which is tensor", "--strategy tensor"),
        ({"norm": "batch"}, "--norm", "does not apply to gpt2", "leave it out"),
        ({"model": "resnet", "seq_len": 8}, "--seq-len", "does not apply to resnet", "leave it out"),
        ({"channels_last": True}, "--channels-last", "does not apply to gpt2", "leave it out"),
    ],
    ids=str,
)
def test_bad_input_is_refused_in_one_line(options: dict[str, Any], got: str, needed: str, typed: str) -> None:
    with pytest.raises(UsageError) as caught:
        asked(**options)
    message = str(caught.value)
    assert all(part in message for part in (got, needed, typed)), message
    assert "\n" not in message
    assert caught.value.exit_status == 2


def test_a_strategy_that_the_model_cannot_do_is_refused_with_those_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(SPECS["gpt2"], refuses={"tensor": "its layers are one piece"})
    monkeypatch.setitem(SPECS, "gpt2", spec)
    with pytest.raises(LayoutError, match="gpt2 cannot be trained with tensor: its layers are one piece") as caught:
        asked(layout="tp2")
    able = str(caught.value).split("use one of ")[1].split(", ")
    assert set(able) == set(STRATEGIES) - {"tensor", "2d", "3d"}
    with pytest.raises(LayoutError, match=r"gpt2 cannot be trained with dp\+tp: its layers are one piece"):
        asked(layout="dp2.tp2/zero1")


def test_the_tensor_degrees_that_are_offered_are_accepted() -> None:
    with pytest.raises(LayoutError) as caught:
        asked(layout="tp3")
    for tp in str(caught.value).split("use a tp of ")[1].split(", "):
        check_split(Layout(tp=int(tp)), spec=SPECS["gpt2"], config=SPECS["gpt2"].config("tiny"))


def test_the_pipeline_degree_that_is_offered_is_accepted() -> None:
    for schedule in ("gpipe", "zbv"):
        with pytest.raises(LayoutError) as caught:
            asked(layout=f"pp16/{schedule}")
        most = int(str(caught.value).split("use pp")[1].split()[0])
        assert asked(layout=f"pp{most}/{schedule}").layout.pp == most
        with pytest.raises(LayoutError):
            asked(layout=f"pp{most + 1}/{schedule}")


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("model", sorted(SPECS))
def test_a_strategy_gives_a_layout_of_its_name_and_size(name: str, model: str) -> None:
    nproc = max(STRATEGIES[name].least, 1 if name == "single" else 4)
    if model == "logistic" and set(STRATEGIES[name].axes) - {"dp"}:
        with pytest.raises(LayoutError, match=f"logistic cannot be trained with {name}: it is one layer with 10"):
            asked(model=model, strategy=name, nproc=nproc)
        return
    if name == "context" and not SPECS[model].sequence(SPECS[model].config(_tiny_size(model))):
        with pytest.raises(LayoutError, match="is given no sequences that ranks could share: use a layout without cp"):
            asked(model=model, strategy=name, nproc=nproc)
        return
    if name == "expert" and not SPECS[model].experts:
        with pytest.raises(LayoutError, match="has no experts to divide: leave ep2 out, or use --model mixtral"):
            asked(model=model, strategy=name, nproc=nproc)
        return
    if model == "vicreg" and "pp" in STRATEGIES[name].axes:
        with pytest.raises(LayoutError, match="its loss is over the whole batch, which a pipeline would cut"):
            asked(model=model, strategy=name, nproc=nproc)
        return
    work = asked(model=model, strategy=name, nproc=nproc)
    assert (work.strategy, work.layout.world_size) == (name, nproc)
    assert set(work.layout.axes) == set(STRATEGIES[name].axes)


def test_what_was_left_open_is_filled_in() -> None:
    work = resolve(RunConfig(model="resnet", layout=Layout.parse("dp3.pp2/gpipe/mb5")))
    run = work.run
    assert (run.size, work.strategy, run.nproc) == ("20", "dp+pp", 6)
    assert run.global_batch_size == work.division.global_batch_size == 75  # the least multiple of 15 from 64 on
    assert resolve(run) == work


def test_the_run_alone_chooses_what_suits_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requested_layout, "machine_processes", lambda: 4)
    work = resolve(RunConfig())
    assert (work.spec.name, work.size, str(work.layout), work.run.global_batch_size) == ("gpt2", "nano", "dp4", 16)
    assert resolve(RunConfig(strategy="3d")).layout.world_size == 8
    assert resolve(RunConfig(nproc=1)).strategy == "single"
    monkeypatch.setattr(requested_layout, "machine_processes", lambda: 1)
    assert resolve(RunConfig(strategy="fsdp")).layout == Layout(zero=3)
    assert resolve(RunConfig(strategy="tensor")).layout == Layout(tp=2)


def test_options_reach_the_model() -> None:
    assert vars(asked(seq_len=8).model_config)["seq_len"] == 8
    found = vars(asked(model="resnet", norm="group", channels_last=True).model_config)
    assert (found["norm"], found["channels_last"]) == ("group", True)
    assert asked(size="124M").model_config == SPECS["gpt2"].config("124m")


def test_options_reach_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARALAB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "books.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["down the rabbit hole " * 20] * 40}), file)
    flags = ["--size", "tiny", "--nproc", "1", "--data", f"file:{file}"]
    with pytest.raises(DataError, match=r"no column 'text': use --text-column with one of body"):
        resolve(read_config(flags)).dataset()
    everything = resolve(read_config([*flags, "--text-column", "body"])).dataset()
    some = resolve(read_config([*flags, "--text-column", "body", "--max-tokens", "1000"])).dataset()
    assert some.n_samples < 100 < everything.n_samples  # it ends with a whole document
    with pytest.raises(DataError, match="only Hugging Face sets are streamed"):
        resolve(read_config([*flags, "--streaming"])).dataset()
    with pytest.raises(DataError, match="leave them out"):
        resolve(read_config(["--model", "resnet", "--nproc", "1", "--max-tokens", "9"])).dataset()


def test_an_unknown_size_names_the_model() -> None:
    with pytest.raises(ConfigError, match="unknown for diffusion: use one of points, tiny-points"):
        asked(model="diffusion", size="1.5b")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without an accelerator")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pin_memory": True}, "--pin-memory without a GPU: .* leave it out"),
        ({"non_blocking": True}, "--non-blocking without a GPU: .* leave it out"),
        ({"compile": "reduce-overhead"}, "--compile reduce-overhead without a GPU: .* use default or max-autotune"),
        ({"compile": "max-autotune-no-cudagraphs"}, "max-autotune-no-cudagraphs without a GPU: .* use max-autotune"),
        ({"cast_on_device": True}, "--cast-on-device without a GPU: .* add --loader-workers 1"),
    ],
)
def test_what_changes_nothing_without_a_gpu_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(RunConfig(**options))


def test_image_files_are_not_cast_on_the_device(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / name / "0.png")
    run = RunConfig(model="resnet", nproc=1, size="tiny", data=f"file:{tmp_path}", global_batch_size=2)
    resolve(run)
    with pytest.raises(ConfigError, match=r"--cast-on-device with file:.*not stored as bytes"):
        resolve(replace(run, cast_on_device=True, loader_workers=1))


def test_graphs_are_of_one_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    several: tuple[dict[str, Any], ...] = ({"accumulation": 2, "nproc": 1}, {"strategy": "pipeline", "nproc": 2})
    for mode in ("reduce-overhead", "max-autotune"):
        resolve(RunConfig(nproc=1, compile=mode))
        for changes in several:
            with pytest.raises(ConfigError, match=rf"--compile {mode} with . micro-batches a step"):
                resolve(RunConfig(compile=mode, **changes))
    for changes in several:
        resolve(RunConfig(compile="max-autotune-no-cudagraphs", **changes))


def test_graphs_are_of_our_own_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    run = RunConfig(strategy="ddp", nproc=2, engine="deepspeed", compile="default")
    resolve(run)
    with pytest.raises(ConfigError, match=r"reduce-overhead with --engine deepspeed.* use --compile default"):
        resolve(replace(run, compile="reduce-overhead"))


# GPUs


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.usefixtures("one_gpu")
def test_one_gpu_is_enough_for_the_defaults() -> None:
    assert str(resolve(RunConfig()).layout) == "dp1"


@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "zero3"])
def test_a_strategy_of_the_data_axis_runs_over_one_process_under_its_own_name(name: str) -> None:
    work = asked(strategy=name, nproc=1)
    assert (work.strategy, work.layout.world_size, work.layout.zero) == (name, 1, int(name[4:] or 0) * (name != "ddp"))
    assert resolve(work.run) == work  # as each rank does


def test_a_strategy_that_has_nothing_to_divide_says_so_and_what_to_type_for_more() -> None:
    ranks = {launcher: Rank(0, 1, 0, 1, launcher) for launcher in ("python", "deepspeed", "accelerate")}
    work = asked(strategy="zero3", nproc=1)
    assert alone(work, ranks["python"]) == ("paralab: zero3 over 1 process: nothing is divided; for more: --nproc 4")
    assert str(alone(work, ranks["deepspeed"])).endswith("deepspeed --num_gpus 4 benchmarks/run.py ...")
    assert "accelerate launch --multi_gpu --num_processes 4" in str(alone(work, ranks["accelerate"]))
    assert alone(asked(nproc=1), ranks["python"]) is None and alone(asked(layout="dp2"), ranks["python"]) is None


@pytest.mark.usefixtures("one_gpu")
def test_on_one_gpu_more_processes_are_those_of_the_cpu() -> None:
    work = asked(strategy="zero3")  # as many as there are GPUs
    said = str(alone(work, Rank(0, 1, 0, 1, "deepspeed")))
    assert "CUDA_VISIBLE_DEVICES= before the command and deepspeed --num_gpus 4" in said


def test_one_process_of_a_launcher_is_too_few_for_a_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (TORCH | {"RANK": "0", "WORLD_SIZE": "1", "CROSS_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LayoutError, match=r"deepspeed started 1 process, and pipeline .*: type deepspeed --num_gpus 2"):
        asked(strategy="pipeline", nproc=1)


@pytest.mark.parametrize("device", ["cuda:0", "cpu"])
def test_batches_go_to_a_gpu_from_pinned_memory(device: str) -> None:
    gpu = device != "cpu"
    chosen, asked = resolve(RunConfig(nproc=1)), resolve(RunConfig(nproc=1, pin_memory=False))
    assert chosen.copies(torch.device(device)) == {"pin_memory": gpu, "non_blocking": gpu}
    assert asked.copies(torch.device(device)) == {"pin_memory": False, "non_blocking": gpu}
    assert chosen.run.pin_memory is None  # a run that goes on elsewhere is asked nothing of its first machine


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("asked", [{"nproc": 4}, {"strategy": "tensor"}, {"layout": "dp4", "backend": "gloo"}])
def test_gpus_are_not_shared(asked: dict[str, Any]) -> None:
    with pytest.raises(WorldError, match=r"\d processes on a machine with 1 GPU, .* CUDA_VISIBLE_DEVICES="):
        resolve(RunConfig(**asked))


TORCH = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}
SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("launcher", "one", "two"),
    [
        (TORCH | {"TORCHELASTIC_RUN_ID": "x"}, {"LOCAL_WORLD_SIZE": "1"}, {"LOCAL_WORLD_SIZE": "2"}),
        (TORCH | {"CROSS_SIZE": "2"}, {"LOCAL_SIZE": "1"}, {"LOCAL_SIZE": "2"}),
        (TORCH | {"CROSS_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "no"}, {"LOCAL_SIZE": "1"}, {"LOCAL_SIZE": "2"}),
        (TORCH, {}, {"LOCAL_RANK": "1"}),
        (SLURM, {"SLURM_TASKS_PER_NODE": "3,1"}, {"SLURM_TASKS_PER_NODE": "2(x2)"}),
        (SLURM, {"SLURM_NTASKS_PER_NODE": "1"}, {"SLURM_NTASKS_PER_NODE": "2"}),
        (SLURM, {}, {"SLURM_LOCALID": "1"}),
    ],
    ids=["torchrun", "deepspeed", "accelerate by deepspeed", "plain variables", "Slurm", "Slurm asked", "Slurm untold"],
)
def test_processes_of_this_machine_count_not_those_of_all_nodes(
    launcher: dict[str, str], one: dict[str, str], two: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (launcher | one).items():
        monkeypatch.setenv(name, value)
    run = RunConfig(nproc=4, engine="torch")
    assert resolve(run).layout.dp == 4
    for name, value in two.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WorldError, match=r"2 processes on a machine with 1 GPU, .*: start 1 on each machine, such as "):
        resolve(run)


@pytest.mark.usefixtures("one_gpu")
def test_slurm_may_show_every_process_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (SLURM | {"SLURM_LOCALID": "3", "SLURM_NTASKS_PER_NODE": "4"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(WorldError, match="4 processes on a machine with 1 GPU"):
        resolve(RunConfig(nproc=4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert resolve(RunConfig(nproc=4)).layout.dp == 4
    assert Rank.from_env().device == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert Rank.from_env().device == torch.device("cuda", 3)


@pytest.mark.parametrize("size", ["points", "tiny-dit"])
def test_noisy_samples_are_not_cast_on_the_device(size: str) -> None:
    with pytest.raises(ConfigError, match=f"--cast-on-device with diffusion {size}: .* leave it out"):
        resolve(RunConfig(model="diffusion", size=size, cast_on_device=True, loader_workers=1))


# All strategies


def test_one_process_is_verified_as_what_it_is() -> None:
    runs = list(cases(VerifyConfig(size="tiny", precision="fp64"), 1))
    assert [(str(run.layout), run.accumulation) for run in runs] == [("dp1", 1), ("dp1", 2)]


def test_every_strategy_that_fits_is_verified() -> None:
    runs = list(cases(VerifyConfig(size="tiny", precision="fp32"), 4))
    found = {name_of(run.layout) for run in runs if run.layout}
    assert found - {"dp+cp"} == STRATEGIES.keys() - {"single", "3d", "expert"}


@pytest.mark.parametrize(("gpus", "hint"), [(1, "CUDA_VISIBLE_DEVICES= before"), (0, "--nproc 2"), (8, "--nproc 2")])
def test_a_tour_of_one_process_says_how_to_see_the_others(
    gpus: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=80e9))
    works, left_out = choose(TourConfig(size="tiny"), 1)
    assert [work.strategy for work in works] == ["single"]
    assert left_out.keys() == {"others"} and hint in left_out["others"]


@pytest.mark.parametrize("command", [tour_command.main, verify_command.main])
def test_nothing_that_fits_is_one_line(
    command: Callable[[list[str]], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where rows would go
    with pytest.raises(LayoutError):
        command("--nproc 9 --global-batch-size 1 --accumulation 2 --size tiny".split())


@pytest.mark.parametrize("command", ["run", "tour", "verify"])
def test_a_file_that_is_missing_is_refused_before_any_process_is_started(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(task, "launch", lambda *_, **__: pytest.fail("processes were started"))
    monkeypatch.chdir(tmp_path)  # where rows would go
    words = [command, "--nproc", "2", "--size", "tiny", "--data", f"file:{tmp_path / 'nothing.txt'}"]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing.txt does not exist: give the path of what is there" in line
    assert not list(tmp_path.rglob("*.csv"))


def test_what_was_found_is_said_once_by_rank_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = resolve(read_config(["--model", "diffusion", "--nproc", "1", "--data", "spiral"]))
    work.show_data("train", "validation")
    assert capsys.readouterr().out == "data: spiral, 50,000 points for training, 10,000 points for validation\n"
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    work.show_data("train", "validation")
    assert not capsys.readouterr().out


def classes_of(work: Work) -> int:
    assert isinstance(work.model_config, ImageConfig)
    return work.model_config.n_classes


@pytest.mark.parametrize("words", [["--model", "resnet", "--size", "tiny"], ["--model", "resnet", "--size", "50"],
                                   ["--model", "diffusion", "--size", "tiny-dit"]])  # fmt: skip
def test_the_number_of_classes_follows_the_data(words: list[str], tmp_path: Path) -> None:
    words = [*words, "--nproc", "1"]
    assert classes_of(resolve(read_config(words))) == 10
    for i in range(12):
        (tmp_path / f"class{i:02}").mkdir()
        (tmp_path / f"class{i:02}" / "0.png").touch()
    words += ["--data", f"file:{tmp_path}"]
    work = resolve(read_config(words))
    assert classes_of(work) == work.run.n_classes == 12
    assert classes_of(resolve(read_config([*words, "--n-classes", "20"]))) == 20
    with pytest.raises(DataError, match="12 classes, this model 11: use --n-classes 12 or leave it out"):
        resolve(read_config([*words, "--n-classes", "11"])).dataset()


@pytest.mark.parametrize(
    ("model", "size", "said"),
    [
        ("logistic", "7", "500 parameters"),
        ("gpt2", "2x32x2v257", "68,480 parameters"),
        ("gpt2", "nano", "7.2 M parameters"),
        ("gpt2", "1.5b", "1,557.7 M parameters"),
    ],
)
def test_parameters_are_told_in_millions_where_there_are_so_many(model: str, size: str, said: str) -> None:
    assert resolve(RunConfig(model=model, size=size)).parameters_text == said


def test_a_number_of_classes_is_refused_where_there_are_none() -> None:
    with pytest.raises(ConfigError, match="--n-classes does not apply to gpt2 nano"):
        resolve(read_config(["--nproc", "1", "--n-classes", "3"]))
