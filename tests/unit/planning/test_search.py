"""The search of `paralab plan`: every legal layout is looked at, the fastest that fits comes first, and it says why."""

import csv
import io
import re
import shlex
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from paralab import cli
from paralab.errors import LayoutError
from paralab.layout import SCHEDULES, Layout, layers_of_stages
from paralab.options.config import RunConfig
from paralab.options.flags import resolve as read_config
from paralab.planning import answers, ranking, report, scale, shapes
from paralab.planning.breakdown import gib_by_category
from paralab.planning.candidates import splits
from paralab.planning.predict import predict
from paralab.planning.report import ASKED, _short
from paralab.planning.resolve import resolve
from paralab.planning.search import Found, search
from paralab.planning.settle import settle
from tests import hugging_face

OWN = "--layers 2 --hidden 128 --n-gpus 2 --peak-tflops 100 --memory-gbyte-per-s 900".split()
GPT3 = {"layers": 32, "hidden": 4096, "heads": 32, "n_gpus": 64, "global_batch_size": 512, "gpu": "A100-SXM4-80GB"}


@cache
def gpt3() -> Found:
    return search(GPT3)


def test_what_is_found_is_what_is_predicted_of_it_alone() -> None:
    """A layout is predicted among thousands as `paralab predict` predicts it by itself."""
    found = gpt3()
    rng = np.random.default_rng(0)
    for i in rng.choice(len(found), 50, replace=False):
        raw = {name: value for name, value in answers.row(found, i).items() if value not in ("", ())}
        alone = predict([settle({**GPT3, **raw})])
        assert alone.step_time_s[0] == pytest.approx(found.prediction.step_time_s[i], rel=1e-9), raw
        assert alone.memory_gib[0] == pytest.approx(found.prediction.memory_gib[i], rel=1e-9), raw


def test_the_first_one_is_the_fastest_that_fits() -> None:
    found = gpt3()
    fits, seconds = found.prediction.fits, found.prediction.step_time_s
    assert 0 < len(found.order) == fits.sum() < len(found)
    assert seconds[found.order[0]] == seconds[fits].min()
    assert (np.diff(seconds[found.order]) >= 0).all()


def test_those_that_are_shown_differ_and_are_the_simplest_of_their_kind() -> None:
    found = gpt3()
    shown = found.ranked(10)
    time = found.prediction.step_time_s
    assert len(shown) == 10 and (np.diff(time[shown]) >= 0).all() and found.best == shown[0]
    assert len({tuple(answers.row(found, i)[name] for name in ("dp", "tp", "pp", "cp", "ep")) for i in shown}) == 10
    assert time[shown[0]] <= 1.01 * time[found.prediction.fits].min()
    for i in shown:  # no plainer layout of these degrees is as fast
        row = answers.row(found, i)
        kind = np.logical_and.reduce([found.columns[name] == row[name] for name in ("dp", "tp", "pp", "cp", "ep")])
        plain = kind & found.prediction.fits & np.isin(found.columns["schedule"], ("", "1f1b"))
        plain &= np.array([not split for split in found.columns["layers_per_stage"]]) & (found.columns["zero"] == 1)
        least = time[kind & found.prediction.fits].min()
        assert row["schedule"] in ("", "1f1b") or not (time[plain] <= 1.01 * least).any()


@pytest.mark.parametrize(("piped_s", "first"), [(0.995, 0), (0.985, 1)])
def test_of_layouts_that_cost_about_as_little_the_one_with_fewest_axes_is_first(piped_s: float, first: int) -> None:
    """Data ranks alone, and a pipeline of stages that are typed in as few words."""
    shown = [answers.row(gpt3(), i) for i in gpt3().order]
    alone = next(row for row in shown if row["dp"] == 64 and row["zero"] == 1 and not row["shard"])
    piped = next(row for row in shown if (row["dp"], row["pp"], row["schedule"]) == (32, 2, "1f1b"))
    columns = {name: np.array([alone[name], piped[name]], dtype=object) for name in ("layers_per_stage",)}
    columns |= {name: np.array([alone[name], piped[name]]) for name in alone if name != "layers_per_stage"}
    cost = np.array([1.0, piped_s])
    found = ranking.ranked(columns, np.arange(2), cost, cost, 2)
    assert found.tolist() == [first, 1 - first]
    assert ranking.ranked(columns, np.arange(2), cost, cost, 1).tolist() == [first]
    assert len(ranking.ranked(columns, np.arange(0), cost, cost, 1)) == 0


def test_every_micro_batch_that_divides_a_batch_is_looked_at() -> None:
    found = search({"layers": 2, "hidden": 128, "heads": 2, "n_gpus": 4, "global_batch_size": 60, "dp": 4})
    assert set(found.columns["micro_batch_size"].tolist()) == {1, 3, 5, 15}


@pytest.mark.parametrize(
    ("asked", "looked_at"),
    [
        ({}, {"none", "full"}),
        ({"attention": "fused"}, {"none", "selective", "full"}),
        ({"framework": "torchtitan"}, {"none", "selective", "full"}),
        ({"recompute": "selective"}, {"selective"}),
    ],
)
def test_attention_is_recomputed_where_that_frees_memory(asked: dict[str, str], looked_at: set[str]) -> None:
    found = search({"layers": 2, "hidden": 128, "heads": 2, "n_gpus": 1, "global_batch_size": 1, **asked})
    assert set(found.columns["recompute"].tolist()) == looked_at


def test_tokens_of_a_sequence_are_said_as_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for flag in ("--seq-len", "--sequence-length"):
        assert cli.main([*"plan --layers 2 --hidden 128 --n-gpus 1".split(), flag, "512"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "512 tokens a sequence" in said[0]


def test_tensor_ranks_have_whole_heads_of_keys_unless_they_are_asked_for() -> None:
    """As `paralab run` and PyTorch have it."""
    grouped = {**GPT3, "n_gpus": 8, "global_batch_size": 8, "kv_heads": 4, "ffn": 11008, "gated": True}
    assert set(search(grouped).columns["tp"].tolist()) == {1, 2, 4}
    assert set(search({**grouped, "ffn": 11010}).columns["tp"].tolist()) == {1, 2}
    assert set(search({**grouped, "tp": 8}).columns["tp"].tolist()) == {8}


@pytest.mark.parametrize(
    ("framework", "schedules"), [("nemo", {"", "1f1b", "interleaved"}), ("deepspeed", {"", "1f1b"})]
)
def test_software_that_is_named_has_its_own_schedules(framework: str, schedules: set[str]) -> None:
    found = search({**GPT3, "framework": framework, "n_gpus": 8, "global_batch_size": 64})
    assert set(found.columns["schedule"].tolist()) == schedules
    assert max(found.columns["zero"][found.columns["pp"] > 1]) == 1
    given = search({**GPT3, "framework": framework, "n_gpus": 8, "global_batch_size": 64, "schedule": "zb-h1"})
    assert set(given.columns["schedule"].tolist()) == {"", "zb-h1"}


def test_every_layout_is_legal_and_there_once() -> None:
    found = gpt3()
    assert len(set(zip(*(column.tolist() for column in found.columns.values()), strict=True))) == len(found) > 10_000
    for i in np.random.default_rng(0).choice(len(found), 1000, replace=False):
        chosen = answers.row(found, i)
        assert chosen["dp"] * chosen["tp"] * chosen["pp"] * chosen["cp"] == 64
        assert 512 % (chosen["dp"] * chosen["micro_batch_size"]) == 0 and 32 % chosen["tp"] == 0
        if answers.is_typed(chosen):
            text = answers.layout_text(chosen, answers.micro_batches(found, i))
            layout = Layout.parse(text)
            assert layout.world_size == 64 and str(layout) == text
            split = layers_of_stages(32, layout.stages, first=layout.first_layers, last=layout.last_layers)
            assert chosen["layers_per_stage"] in ((), split)
            if layout.pp > 1:
                layout.check_schedule()


def test_all_that_can_be_chosen_beside_degrees_is_tried() -> None:
    found = gpt3().columns
    scores = search({**GPT3, "attention": "fused", "tp": 8, "pp": 1, "zero": 0}).columns
    assert set(found["recompute"].tolist()) == {"none", "full"}, "flash attention keeps no scores to be made again"
    assert set(scores["recompute"].tolist()) == {"none", "selective", "full"}
    assert set(found["sequence_parallel"][found["tp"] > 1].tolist()) == {False, True}
    assert set(found["micro_batch_size"][found["dp"] == 2].tolist()) >= {1, 2, 4, 8, 16, 32, 64, 128, 256}
    groups = found["shard"] > 0
    assert np.any(groups) and np.all((found["shard"] * found["tp"])[groups] <= 8), "of a node of eight"
    fewer = found["schedule"] == "dualpipev"
    assert np.all((512 // found["dp"] // found["micro_batch_size"])[fewer] >= 2 * found["pp"][fewer])
    long = search({**GPT3, "sequence_length": 8192, "tp": 8, "pp": 1, "micro_batch_size": 1, "zero": 0}).columns
    assert set(long["cp"].tolist()) == {1, 2, 4, 8} and set(found["cp"].tolist()) == {1}


def test_every_schedule_that_is_trained_is_looked_at() -> None:
    """With as many stages a rank; the naive one is gpipe with one micro-batch."""
    found = search(GPT3 | {"dp": 16, "tp": 1})
    rows = [answers.row(found, i) for i in range(len(found))]
    typed = {Layout.parse(answers.layout_text(row, 32)).schedule for row in rows if answers.is_typed(row)}
    several = {f"{name}x{stages}" for name in ("interleaved", "zero-bubble") for stages in (4, 8)}  # of 32 layers
    assert several | {"zero-bubblex1"} <= typed
    assert {word.partition("x")[0] for word in typed if word} == set(SCHEDULES) - {"naive"}


@pytest.mark.parametrize(
    ("model", "size", "changes"),
    [
        ("gpt2", "124m", {}),
        pytest.param("gpt2", "124m", {"sequence_length": 8192}, marks=pytest.mark.long),
        ("llama", "8b", {"n_gpus": 64}),
        ("mixtral", "tiny", {"gpu": "V100-SXM2-32GB"}),
        ("resnet", "50", {}),
        ("diffusion", "dit-mnist", {}),
        pytest.param("vicreg", "8", {}, marks=pytest.mark.long),
    ],
)
def test_every_line_that_is_printed_is_accepted_by_run(model: str, size: str, changes: dict[str, Any]) -> None:
    """Of each, what `paralab run` checks before it starts a process: options, layout, model, schedule, batch."""
    trained, raw = shapes.find(model, size)
    found = search({**raw, "n_gpus": 8, "global_batch_size": 64, "gpu": "H100-SXM-80GB", **changes})
    some = np.random.default_rng(0).choice(len(found), min(len(found), 120), replace=False)
    lines = {i: line for i in some if (line := answers.line_of(found, i, trained)) is not None}
    assert lines
    for i, line in lines.items():
        work = resolve(read_config(shlex.split(line)[2:], config=RunConfig), dry=True)
        chosen = answers.row(found, i)
        assert work.layout.world_size == chosen["dp"] * chosen["tp"] * chosen["pp"] * chosen["cp"]
        assert work.division.micro_batch_size == chosen["micro_batch_size"]
        assert work.run.checkpointing == chosen["recompute"]


@pytest.mark.parametrize("style", ["ring", "ulysses"])
def test_context_ranks_are_typed_as_they_are_predicted(style: str) -> None:
    found = search(GPT3 | {"sequence_length": 32768, "cp": 4, "tp": 2, "pp": 2, "zero": 3, "cp_style": style})
    chosen = next(row for i in range(len(found)) if answers.is_typed(row := answers.row(found, i)))
    layout = Layout.parse(answers.layout_text(chosen, 8))
    assert (layout.dp, layout.cp, layout.cp_style, layout.zero) == (4, 4, style, 3)


@pytest.mark.parametrize(("layers", "stages"), [(32, 2), (32, 8), (33, 8), (30, 16), (8, 8), (96, 64)])
def test_uneven_stages_have_fewer_layers_at_the_ends(layers: int, stages: int) -> None:
    for split in splits(layers, stages, 3):
        assert sum(split) == layers and len(split) == stages and min(split) >= 1
        inside = split[1:-1] or split[:1]
        assert split[0] <= max(inside) and split[-1] <= max(inside) and max(inside) - min(inside) <= 1


def test_a_heavy_output_layer_has_fewer_layers_beside_it() -> None:
    """Llama's 128k tokens weigh more than two layers: the last stage has fewer, and the step is shorter for it."""
    llama = {"layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "ffn": 14336, "gated": True, "vocab": 128256}
    found = search(GPT3 | llama | {"tp": 1, "pp": 8, "schedule": "1f1b"})
    best = answers.row(found, int(found.order[0]))
    even = np.array([not split for split in found.columns["layers_per_stage"]]) & found.prediction.fits
    assert best["layers_per_stage"][-1] < best["layers_per_stage"][1]
    assert found.prediction.step_time_s[found.order[0]] < 0.97 * found.prediction.step_time_s[even].min()


@pytest.mark.parametrize(
    ("stages", "words"), [((8, 8, 8, 8), ""), ((9, 7, 7, 9), "/first9/last9"), ((7, 8, 10, 7), "/stages7-8-10-7")]
)
def test_stages_that_are_given_are_typed_where_layouts_have_words_for_them(stages: tuple[int, ...], words: str) -> None:
    found = search(GPT3 | {"n_gpus": 4, "pp": 4, "schedule": "1f1b", "layers_per_stage": stages, "recompute": "none"})
    chosen = answers.row(found, 0)
    assert answers.layout_text(chosen, 8) == f"pp4/1f1b/mb8{words}"
    assert answers.is_typed(chosen) == ("stages" not in words)


def test_columns_that_are_given_stay() -> None:
    given = {"tp": 8, "pp": 2, "zero": 1, "micro_batch_size": 2, "recompute": "full", "schedule": "1f1b"}
    found = search(GPT3 | given)
    assert all({value.item() for value in found.columns[name]} == {wanted} for name, wanted in given.items())


def test_more_memory_and_a_faster_network_are_never_worse() -> None:
    def best(**changes: Any) -> float:
        found = search(GPT3 | {"pp": 2} | changes)
        return float(found.prediction.step_time_s[found.order[0]])

    assert best(gpu="A100-SXM4-80GB") <= best(gpu="A100-SXM4-40GB")
    assert best(inter_node_gbit_per_s=400.0) <= best(inter_node_gbit_per_s=50.0)
    assert best(n_gpus=128) < best()


def test_categories_of_memory_add_up_to_it() -> None:
    found = gpt3()
    assert sum(gib_by_category(found.case, found.machine).values()) == pytest.approx(found.prediction.memory_gib)


def test_a_large_model_on_many_devices_takes_no_time() -> None:
    question = GPT3 | {"layers": 96, "hidden": 12288, "heads": 96, "n_gpus": 1024, "global_batch_size": 1536}
    began = time.process_time()
    found = search(question)
    assert len(found.order) and time.process_time() - began < 10
    assert len(found) > 100_000


def test_a_hundred_thousand_layouts_a_second() -> None:
    """Of this process alone: what else runs on the machine does not count."""
    question = GPT3 | {"layers": 96, "hidden": 12288, "heads": 96, "n_gpus": 128, "global_batch_size": 384}
    search(question | {"n_gpus": 8})
    rates = []
    for _ in range(2):
        began = time.process_time()
        rates.append(len(search(question)) / (time.process_time() - began))
    assert max(rates) > 100_000


def test_no_legal_layout_is_said() -> None:
    with pytest.raises(LayoutError, match="no layout of 7 GPUs"):
        search(GPT3 | {"n_gpus": 7, "tp": 2})


@pytest.mark.parametrize("given", [{"tp": 3}, {"dp": 2, "tp": 2, "pp": 3}, {"pp": 64, "zero": 1}, {"ep": 2}])
def test_what_is_not_legal_gets_the_closest_layouts_that_are(given: dict[str, int]) -> None:
    """Each of them can be searched for by its degrees."""
    question = {"layers": 8, "hidden": 512, "heads": 8, "n_gpus": 8, "global_batch_size": 64}
    with pytest.raises(LayoutError, match="the closest that work are ") as refused:
        search(question | given)
    texts = str(refused.value).partition("the closest that work are ")[2].split(", ")
    assert 1 <= len(texts) <= 3
    for text in texts:
        degrees = {part[:2]: int(part[2:]) for part in text.split("/")[0].split(".")}
        assert np.prod(list(degrees.values())) == 8 and len(search(question | degrees))
    assert given != {"tp": 3} or "tp4" in texts[0]


def test_a_batch_that_nothing_divides_is_given_one_that_works() -> None:
    question = {"layers": 1, "hidden": 512, "heads": 1, "n_gpus": 8, "global_batch_size": 7}
    with pytest.raises(LayoutError, match="use a batch such as 8,"):
        search(question)


def test_figures_of_a_datasheet_are_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", *OWN, "--memory-gib", "24", "--link-gbyte-per-s", "64", "--top", "1"]
    assert cli.main(words) == 0
    assert "2 x own, 24 GiB each" in capsys.readouterr().out
    assert cli.main([*words, "--gpu", "mine"]) == 0
    assert "2 x mine, 24 GiB each" in capsys.readouterr().out
    assert cli.main(["plan", "--layers=2", "--hidden=128", "--n-gpus=2", "--gpu=h100-sxm-80gb", "--memory-gib=5"]) == 0
    assert "2 x H100-SXM-80GB (changed), 5 GiB each" in capsys.readouterr().out


def test_hybrid_sharding_lies_between_whole_copies_and_zero_over_all() -> None:
    """On a slow network: fewer bytes between nodes than ZeRO-3 over all of them, more memory."""
    slow = GPT3 | {
        "tp": 1,
        "pp": 1,
        "micro_batch_size": 1,
        "recompute": "none",
        "zero": 3,
        "inter_node_gbit_per_s": 25.0,
    }
    found = search(slow)
    by_shard = {answers.row(found, i)["shard"]: i for i in range(len(found))}
    assert sorted(by_shard) == [0, 8]
    every, node = by_shard[0], by_shard[8]
    assert answers.name(found, node) == "dp64/zero3/shard8" and answers.is_typed(answers.row(found, node))
    assert found.prediction.step_time_s[node] < found.prediction.step_time_s[every]
    states = found.memory_gib["states"]
    assert states[node] == pytest.approx(8 * states[every])
    whole = search(slow | {"zero": 0})
    assert states[node] < whole.memory_gib["states"][0]


def test_groups_of_hybrid_sharding_divide_the_experts_and_pass_on_their_gradients() -> None:
    one = {"dp": 16, "tp": 1, "pp": 1, "cp": 1, "ep": 4, "micro_batch_size": 1, "recompute": "none", "zero": 3}
    _, raw = shapes.find("mixtral", "8x7b")
    mixture = {**raw, **one, "n_gpus": 16, "gpu": "H100-SXM-80GB", "gpus_per_node": 4, "global_batch_size": 16}
    found = search(mixture)
    assert {answers.name(found, i) for i in range(len(found))} == {"dp16.ep4/zero3", "dp16.ep4/zero3/shard4"}
    beyond = search({**mixture, "ep": 8})
    assert {answers.name(beyond, i) for i in range(len(beyond))} == {"dp16.ep8/zero3"}  # no node divides them alone
    slow = search({**mixture, "inter_node_gbit_per_s": 1.0, "shard": 4}).prediction.step_time_s[0]
    experts = 32 * 2 * 3 * 4096 * 14336  # weights that a rank has: two of eight in each layer
    assert slow > 2 * 3 / 4 * 4 * experts / 125e6  # seconds of an all-reduce over four groups, 4 bytes each


def _weights(name: str, folder: Path, **changes: Any) -> tuple[float, int, str]:
    """The weights of a small model as a planner has them and as it has them; what the answer says of both."""
    model, raw = shapes.find(f"hf:{hugging_face.write(name, folder / name, **changes)}", None)
    one = {"n_gpus": 2, "dp": 2, "gpu": "H100-SXM-80GB", "global_batch_size": 2, "zero": 3, "recompute": "full"}
    found = search({**raw, **one})
    return scale.n_weights(found), model.n_weights, "\n".join(report.head(found, raw, model))


def test_the_experts_of_a_model_of_transformers_have_a_width_of_their_own(tmp_path: Path) -> None:
    planned, real, said = _weights("qwen3_moe", tmp_path, mlp_only_layers=[], head_dim=8)
    assert planned == pytest.approx(real, rel=0.002)  # norms of heads
    assert "modules" not in said
    planned, real, said = _weights("deepseek_v3", tmp_path, kv_lora_rank=256)
    assert f"The modules of this model have {real / 1e6:.2f} M weights" in said


def test_what_has_no_heads_is_planned_by_its_modules(tmp_path: Path) -> None:
    transformers.MambaConfig(num_hidden_layers=2, state_size=4).save_pretrained(tmp_path)
    _, raw = shapes.find(f"hf:{tmp_path}", "tiny")
    assert raw["layers"] == 2 and "counted" in raw


# --- the command


def test_the_answer_fits_a_terminal_and_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --model llama --size 8b --n-gpus 32 --global-batch-size 256 --tokens 20x --price-per-gpu-hour 2"
    assert cli.main(words.split()) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("llama 8b: 8.03 B weights")
    assert max(len(line) for line in shown if "paralab run" not in line) <= 80
    assert "paralab run --model llama --size 8b --layout dp" in " ".join("\n".join(shown).replace("\\\n", " ").split())
    assert any(line.startswith("  dollars") and line.endswith("device-hours x price of one") for line in shown)
    assert any("ddp: dp32 needs" in line and "states" in line for line in shown)


def test_reasons_say_what_the_longer_step_is_spent_on() -> None:
    """Matrix products bound every layout here; why one is slower than another is something else."""
    _, raw = shapes.find("llama", "llama2-7b")
    found = search({**raw, "n_gpus": 64, "gpu": "H100-SXM-80GB"})
    best = {name: (answers.row(found, i), why) for name, i, why in answers.losers(found)}
    assert best["zero1"][0]["recompute"] == "full"
    assert best["zero1"][1].endswith(" times as slow: full recomputation, without which it does not fit")
    assert best["zero3"][1].endswith(" times as slow: communication") and " GiB of 79: states " in best["ddp"][1]


@pytest.mark.parametrize(("gpu", "is_said"), [("A100-SXM4-80GB", False), ("MI300X --set micro_batch_size=1", True)])
def test_what_was_not_checked_or_hardly_fits_is_said(
    gpu: str, is_said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(f"plan --model gpt2 --size gpt3-13b --n-gpus 8 --top 2 --gpu {gpu}".split()) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ("No table is of this generation of devices" in shown) == is_said
    assert ("less memory free than the 9% by which" in shown) != is_said


def test_what_paralab_does_not_train_in_is_not_said_to_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("plan --model llama --size 8b --n-gpus 8 --precision fp8".split()) == 0
    shown = capsys.readouterr().out
    assert "paralab run" not in shown and "* paralab itself does not train in fp8." in shown


@pytest.mark.parametrize("model", ["--model gpt2 --size gpt3-6.7b", "--layers 32 --hidden 4096"])
def test_layouts_that_paralab_does_not_train_are_marked(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(f"plan {model} --n-gpus 64 --global-batch-size 512 --gpu H200-SXM-141GB".split()) == 0
    shown = capsys.readouterr().out.splitlines()
    layouts = [line for line in shown if re.match(r" ?\d+ dp", line)]
    assert len(layouts) == 10 and any("zb-h2" in line for line in layouts)
    assert all((" *" in line) == ("zb-h2" in line) for line in layouts)
    assert "* paralab itself does not train this layout." in shown


def test_where_nothing_fits_it_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --model llama --size 70b --n-gpus 8 --global-batch-size 64 --gpu A100-SXM4-40GB"
    assert cli.main(words.split()) == 0
    shown = capsys.readouterr().out
    assert "No layout fits" in shown and "GiB too much: states" in shown and "64 GPUs of this kind would do." in shown
    assert "With all states in the memory of the host dp8/zero3/" in " ".join(shown.split())  # and not with fewer
    assert "131 on the host for each GPU" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("gpu", "batch", "said", "layout"),
    [
        ("A100-SXM4-40GB", 8, "all states", "dp1/zero3/offload-parameters"),
        ("A100-SXM4-40GB", 512, "optimizer states", "dp1/offload-optimizer"),
    ],
)
def test_where_nothing_fits_offloading_is_looked_at(
    gpu: str, batch: int, said: str, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"plan --model gpt2 --size gpt3-2.7b --n-gpus 1 --global-batch-size {batch} --gpu {gpu}"
    assert cli.main(words.split()) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"With {said} in the memory of the host {layout} fits, with " in shown and "Copies over 31.5 GB/s" in shown
    assert "2 GPUs of this kind would do." in shown
    line = shown.partition("trains, offloaded: ")[2].partition(" On 11 ")[0]
    run = read_config(shlex.split(line.replace("\\ ", ""))[2:], config=RunConfig)
    assert resolve(run, dry=True).layout == Layout.parse(layout)


def test_a_tokenizer_gives_a_model_its_vocabulary(capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --model gpt2 --size 124m --n-gpus 2 --global-batch-size 8 --top 1".split()
    assert cli.main(words) == cli.main([*words, "--tokenizer", "bytes"]) == 0
    whole, few = capsys.readouterr().out.split("gpt2 124m: ")[1:]
    assert few.startswith("85.") and not whole.startswith("85.")  # 124 M without 50,000 tokens of 768
    assert "paralab run --model gpt2 --size 124m --tokenizer bytes --layout " in few


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--n-gpus", "8"], "no model: give"),
        (["--layers", "8", "--hidden", "512", "--n-gpus", "8", "--tokenizer", "gpt2"], "--tokenizer without --model"),
        (["--model", "gpt2", "--n-gpus", "8", "--tokenizer", "gpt2", "--vocab", "9"], "--tokenizer with --vocab"),
        (["--model", "resnet", "--n-gpus", "8", "--tokenizer", "gpt2"], "--tokenizer does not apply to resnet"),
        (["--layers", "8", "--hidden", "512"], "--n-gpus is missing"),
        (["--layers", "0", "--hidden", "512", "--n-gpus", "8"], "layers is '0': give a whole number"),
        (["--model", "gpt2", "--size", "175b", "--n-gpus", "8"], "unknown for gpt2 (did you mean gpt3-175b?)"),
        (["--model", "gpt2", "--n-gpus", "8", "--gpu", "H1000"], "use one of H100-SXM-80GB, H100-PCIe-80GB, A10, or"),
        (["--model", "gpt2", "--n-gpus", "8", "--gpu", "?"], "MI300X, MI250X GCD, TPU v4, TPU v5e, TPU v5p, or"),
        (["--model", "gpt2", "--n-gpus", "8", "--gpu", "H1000"], "describe it: --peak-tflops 100 --memory-gib 24"),
        (["--model", "gpt2", "--n-gpus", "8", "--peak-tflops", "9"], "--peak-tflops without --memory-gib, --memory-g"),
        ([*OWN, "--memory-gib", "-5"], "memory_gib is -5.0: give a number above 0"),
        ([*OWN, "--memory-gib", "many"], "memory_gib is 'many': give a number"),
        (["--model", "gpt2", "--n-gpus", "8", "--set", "tpp=2"], "--set tpp=2: give COLUMN=VALUE"),
        (["--model", "gpt2", "--n-gpus", "8", "--tokens", "1e30"], "--tokens 1e30: give a positive number"),
        (["--model", "gpt2", "--n-gpus", "8", "--tokens", "1T"], "--tokens 1T: give a positive number"),
        (["--model", "logistic", "--n-gpus", "2"], "divides: measure it with paralab bench --model logistic"),
        (["--model", "gpt2", "--n-gpus", "8", "--price-per-gpu-hour", "2"], "--price-per-gpu-hour without --tokens"),
        (["--model", "gpt2", "--n-gpus", "8", "--out", "p.txt"], "--out p.txt: the name has to end with .csv or .json"),
        (["--model", "gpt2", "--n-gpus", "8", "--budget-usd", "9"], "--budget-usd without --price-per-gpu-hour"),
        (["--model", "gpt2", "--n-gpus", "8", "--days", "-1"], "--days -1: give a positive number"),
        (["--model", "gpt2", "--n-gpus", "8", "--days", "1", "--tokens", "1e9"], "--days with --tokens says how many"),
        (["--model", "gpt2", "--days", "1"], "--n-gpus is missing"),
        (["--model", "gpt2", "--n-gpus", "8", "--top", "0"], "--top: '0' is not allowed: use a whole number of"),
        (["q.csv", "--model", "gpt2"], "--model with q.csv: say it in a column"),
    ],
)
def test_a_question_that_cannot_be_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *words]) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown and "\n" not in shown


def test_a_file_of_questions_is_answered_row_by_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.csv").write_text(
        "case_id,layers,hidden,heads,n_gpus,global_batch_size,gpu,tp\n"
        "a,32,4096,32,64,512,A100-SXM4-80GB,\n"
        "b,0,4096,32,64,512,A100-SXM4-80GB,\n"
        "c,32,4096,32,64,512,A100-SXM4-80GB,8\n"
        "a,48,8192,64,64,128,A100-SXM4-80GB,\n"
    )
    assert cli.main(["plan", str(tmp_path / "q.csv"), "--out", str(tmp_path / "p.csv"), "--top", "3"]) == 1
    rows = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    assert [(row["case_id"], row["rank"]) for row in rows] == [(case, str(n)) for case in "aca" for n in (1, 2, 3)]
    assert list(rows[0]) == ["case_id", "rank", *ASKED, "step_time_s", "memory_gib", "fits", "trained_by_paralab"]
    assert all(row["tp"] == "8" for row in rows[3:6]) and all(row["fits"] == "true" for row in rows)
    said = capsys.readouterr().err
    assert "q.csv, line 3: layers is '0'" in said and "q.csv, line 5: case_id 'a' is that of line 2 as well" in said


def test_an_answer_to_a_question_says_what_paralab_does_not_train(tmp_path: Path) -> None:
    """Its schedules but zb-h2, which torch.distributed.pipelining does not have."""
    (tmp_path / "q.csv").write_text(
        "layers,hidden,heads,n_gpus,dp,pp,global_batch_size,schedule\n"
        "24,2048,16,4,1,4,32,zb-h2\n"
        "24,2048,16,4,1,4,32,zb-h1\n"
    )
    assert cli.main(["plan", str(tmp_path / "q.csv"), "--out", str(tmp_path / "p.csv"), "--top", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    trained = {(row["schedule"], row["trained_by_paralab"]) for row in rows}
    assert trained == {("zb-h2", "false"), ("zb-h1", "true")}


def test_numbers_of_a_column_are_as_exact_as_each_other() -> None:
    shown = [_short(number) for number in (1.3, 1.22, 0.5, 12, 99.96, 100, 1234.5)]
    assert shown == ["1.30", "1.22", "0.500", "12.0", "100", "100", "1,234"]


@pytest.mark.parametrize(("length", "said"), [(2048, False), (131072, True)])
def test_long_sequences_say_what_the_mfu_is_without_what_a_mask_hides(
    length: int, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of Llama 8B at 128k positions: 6 LHS = 103 GFLOPs a token, beside 6 N = 48 and as many again that count."""
    words = f"plan --model llama --size 8b --n-gpus 64 --seq-len {length} --set tp=8 --top 1"
    assert cli.main(words.split()) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ("41% of all FLOPs, that of layout 1 is " in shown) == said
