"""Predictions for a device that was measured: its file, the rules, and what is refused in one line."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from paralab import cli
from paralab.axes.axis import Software, Transfer
from paralab.axes.held import state_bytes, state_bytes_of
from paralab.errors import ConfigError, LayoutError
from paralab.layout import Layout
from paralab.measure.dry_run import dry_run
from paralab.models import SPECS
from paralab.options.config import RunConfig
from paralab.planning.measured import device as files
from paralab.planning.measured import imagined, search, step
from paralab.planning.measured.device import MeasuredDevice, Rates, Sample, Sent, between
from paralab.planning.measured.operations import Operation, Recorder
from paralab.planning.measured.schedule import Took, makespan_s
from paralab.planning.measured.seconds import bytes_s, operation_s, transfer_s
from paralab.planning.measured.step import Cluster
from paralab.planning.measured.trace import states, traces
from paralab.planning.resolve import resolve
from paralab.planning.settle import settle
from paralab.records.writing import append
from tests.unit.synthetic_runs import run

FLOPS, BYTES_PER_S = 5e10, 1e10


def samples(flops_per_s: float = FLOPS) -> dict[str, tuple[Sample, ...]]:
    """Return operations that all run at one speed: products of so many FLOP/s, additions of so many bytes/s."""

    def made() -> Iterator[Sample]:
        for m, n, k in product((16, 256, 4096), repeat=3):
            flops = 2.0 * m * n * k
            yield Sample((m, n, k), flops, 4 * (m * n + m * k + n * k), flops / flops_per_s)

    sizes = (1 << 10, 1 << 16, 1 << 24)
    return {
        "product float32": tuple(made()),
        "add float32": tuple(Sample((), 0.0, size, size / BYTES_PER_S) for size in sizes),
    }


def rates(threads: int, processes: int) -> Rates:
    return Rates(threads, processes, 1e-8, 1e-8, 1e-8, samples(FLOPS * threads))


DEVICE = MeasuredDevice(
    name="a processor",
    kind="cpu",
    cores=2,
    memory_gib=16.0,
    torch="2.13.0",
    date="2026-11-26",
    measured_s=20.0,
    others_cores=0.0,
    rates=(rates(1, 2), rates(2, 1)),
    all_reduces=tuple(Sent(n, size, n * (1e-4 + size / 1e9)) for n in (2, 4) for size in (1 << 10, 1 << 20, 1 << 24)),
    messages=tuple(Sent(2, size, 1e-4 + size / 1e9) for size in (1 << 10, 1 << 20, 1 << 24)),
    software={},
)
TINY, CONFIG = SPECS["gpt2"], replace(SPECS["gpt2"].config("2x32x4v257"), seq_len=16)


def predicted(layout: str, *, batch: int = 8, device: MeasuredDevice = DEVICE, **more: Any) -> step.Predicted:
    cluster = more.pop("cluster", step.ONE_MACHINE)
    plan = imagined.imagine(TINY, CONFIG, Layout.parse(layout), batch=batch, run=RunConfig(**more))
    return step.predict(plan, device, cluster)


@pytest.mark.parametrize(("layout", "kind"), [("dp1", "mul"), ("dp2/zero2", "mul"), ("dp2", "copy")])
def test_clipping_and_copies_read_and_write_the_gradients_that_a_rank_has(layout: str, kind: str) -> None:
    """In fp32, copies into what is reduced: where it is ten times as slow as sums, nine times as long more."""
    slow = {f"{kind} float32": tuple(replace(s, seconds=10 * s.seconds) for s in samples()["add float32"])}
    device = replace(DEVICE, rates=tuple(replace(r, operations={**r.operations, **slow}) for r in DEVICE.rates))
    more = predicted(layout, device=device).parts["update"] - predicted(layout).parts["update"]
    weights = sum(p.numel() for p in TINY.on_meta(CONFIG).parameters())
    of_rank = weights / (2 if "zero2" in layout else 1)
    assert more == pytest.approx(9 * 8 * of_rank / BYTES_PER_S, rel=0.01)


def test_more_ranks_than_were_measured_take_longer_in_proportion() -> None:
    four, twelve = (transfer_s(Transfer("all_reduce", ranks, 3 << 20, calls=3), DEVICE) for ranks in (4, 12))
    assert four == pytest.approx(3 * 4 * (1e-4 + (1 << 20) / 1e9), rel=1e-3)
    assert twelve == pytest.approx(3 * four)


def test_each_pass_of_a_pipeline_waits_for_half_of_what_a_micro_batch_sends() -> None:
    """Four micro-batches through two stages: where tensor ranks wait most of all, five times those of one."""
    slow = replace(DEVICE, all_reduces=tuple(replace(s, seconds=1000 * s.seconds) for s in DEVICE.all_reduces))
    found = predicted("pp2.tp2/1f1b/mb4", device=slow)
    plan = imagined.imagine(TINY, CONFIG, Layout.parse("pp2.tp2/1f1b/mb4"), batch=8, run=RunConfig())
    once_s = step._Links(plan, slow, step.ONE_MACHINE).once_s
    assert (found.step_time_s - once_s) / (found.parts["link"] - once_s) == pytest.approx(5 / 4, rel=0.05)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_bytes(files.write(DEVICE))
    again = files.read(path)
    assert replace(again, rates=()) == replace(DEVICE, rates=())
    assert [vars(one) for one in again.rates] == [vars(one) for one in DEVICE.rates]
    assert max(map(len, path.read_text().split("\n"))) < 140  # a sample a line: people read it


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(format="mine"), "no measured device"),
        (lambda content: content.update(format=files.FORMAT.replace("2", "1")), "version 2"),
        (lambda content: content["software"].update({"split layer": -1}), "-1"),
        (lambda content: content["software"].update({"split layer": 1e-4}), "software lacks replicated parameter"),
        (lambda content: content.pop("cores"), "cores"),
        (lambda content: content.update(speed=3), "speed"),
        (lambda content: content.update(cores=-1), "cores is -1"),
        (lambda content: content.update(kind="abacus"), "abacus"),
        (lambda content: content.update(rates=[]), "0 rates"),
        (lambda content: content["rates"][0]["operations"].pop("add float32"), "add float32"),
        (lambda content: content["rates"][0]["operations"]["add float32"][0].__setitem__(3, "fast"), "fast"),
        (lambda content: content["rates"][0]["operations"]["add float32"][0].__setitem__(3, 0), "seconds"),
        (lambda content: content["messages"][0].update(seconds=0), "messages"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, change: Any, said: str) -> None:
    content = json.loads(files.write(DEVICE))
    change(content)
    path = tmp_path / "device.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=said) as refused:
        files.read(path)
    assert "\n" not in str(refused.value) and "paralab calibrate" in str(refused.value)


def test_no_json_and_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "device.json").write_bytes(b"\xff{")
    for name, said in (("device.json", "not JSON"), ("none.json", "No such file")):
        with pytest.raises(ConfigError, match=said):
            files.read(tmp_path / name)


def test_between_measured_sizes_seconds_lie_on_lines_of_logarithms() -> None:
    points = [(100.0, 1.0), (10_000.0, 10.0)]
    assert between(points, 1000) == pytest.approx(10**0.5)
    assert between(points, 10) == 1.0 and between(points, 20_000) == 20.0


def test_an_operation_takes_as_long_as_those_measured_near_it() -> None:
    product_s = operation_s(Operation("product", "float32", (300, 300, 300), 2 * 300.0**3, 0), DEVICE.rates[0])
    assert product_s == pytest.approx(2 * 300**3 / FLOPS)
    assert operation_s(Operation("erfinv", "float32", (), 0.0, 1 << 20), DEVICE.rates[0]) == pytest.approx(
        (1 << 20) / BYTES_PER_S
    )


def test_beyond_the_largest_measured_size_an_operation_grows_as_sums_do() -> None:
    one = replace(DEVICE.rates[0], operations=samples() | {"clamp float32": (Sample((), 0.0, 8, 2e-6),)})
    assert bytes_s("clamp", 512, one) == pytest.approx(2e-6)  # so small that all is starting it
    assert bytes_s("clamp", 1 << 24, one) == pytest.approx(2e-6 * (1 << 14))


def test_attention_over_positions_that_fill_no_tile_takes_as_long_as_over_those_that_do() -> None:
    """Of 49 queries and keys a kernel has blocks of 16 and vectors of 8, and works on 64 x 56."""
    sample = Sample((8, 64, 64, 32, 0), 4.0 * 8 * 64 * 64 * 32, 1 << 20, 1e-3)
    rates = replace(DEVICE.rates[0], operations=samples() | {"attention float32": (sample,)})
    odd, whole = (
        operation_s(Operation("attention", "float32", (8, q, k, 32, 0), 4.0 * 8 * q * k * 32, 1 << 20), rates)
        for q, k in ((49, 49), (64, 56))
    )
    assert odd == pytest.approx(whole)


def test_sums_of_rows_are_no_sums_of_all_elements() -> None:
    x = torch.ones(6, 4, requires_grad=True)
    with Recorder() as recorder:
        x.sum(0)
        x.sum()
        x.sum(1)
    assert sorted(operation.kind for operation in recorder.work.operations) == ["sum", "sum", "sum of rows"]


def test_narrow_products_are_slower_by_a_width_that_the_measured_ones_show() -> None:
    def flops_per_s(*sides: int) -> float:
        return FLOPS / prod(1 + 16 / side for side in sides)

    def sample(*sides: int) -> Sample:
        return Sample(sides, 2.0 * prod(sides), 0, 2 * prod(sides) / flops_per_s(*sides))

    made = tuple(sample(*sides) for sides in product((16, 256, 4096), repeat=3))
    one = replace(DEVICE.rates[0], operations=samples() | {"product float32": made})
    for sides in ((1024, 50304, 128), (40, 40, 40), (3000, 20, 900)):
        operation = Operation("product", "float32", sides, 2.0 * prod(sides), 0)
        assert operation.flops / operation_s(operation, one) == pytest.approx(flops_per_s(*sides), rel=0.02)


def test_gradients_and_gathered_weights_are_copied() -> None:
    slow = tuple(replace(s, seconds=100 * s.seconds) for s in samples()["add float32"])
    rates = tuple(replace(one, operations={**one.operations, "copy float32": slow}) for one in DEVICE.rates)

    def copies_s(layout: str) -> float:
        return (
            predicted(layout, device=replace(DEVICE, rates=rates)).parts["update"] - predicted(layout).parts["update"]
        )

    once = copies_s("dp2")  # gradients, into buckets
    assert copies_s("dp1") == 0 and copies_s("dp2/zero2") == pytest.approx(2 * once, rel=0.02)
    assert 2.2 * once < copies_s("dp2/zero3") < 3 * once  # blocks are gathered twice


def test_a_larger_batch_takes_longer_and_needs_more() -> None:
    small, large = predicted("dp2", batch=8), predicted("dp2", batch=16)
    assert 1.5 < large.parts["compute"] / small.parts["compute"] < 2.1
    assert large.step_time_s > small.step_time_s and large.memory.activations > 1.9 * small.memory.activations


def test_more_ranks_than_cores_share_them() -> None:
    two, four = predicted("dp2", batch=8), predicted("dp4", batch=16)  # each rank has as many samples
    assert four.parts["compute"] == pytest.approx(2 * two.parts["compute"], rel=0.01)
    assert four.parts["update"] == pytest.approx(2 * two.parts["update"], rel=0.01)


def test_one_process_has_all_cores() -> None:
    assert predicted("dp1", batch=8).parts["compute"] < predicted("dp2", batch=16).parts["compute"]


def test_in_the_naive_pipeline_one_rank_computes_at_a_time() -> None:
    naive, filled = predicted("pp2/naive", batch=8), predicted("pp2/1f1b/mb4", batch=8)
    assert naive.parts["bubble"] > 1.3 * filled.parts["bubble"] > 0


def test_a_slower_network_is_waited_for_by_those_on_several_machines() -> None:
    near = predicted("dp4")
    far = [predicted("dp4", cluster=Cluster(per_node=2, gbit_per_s=gbit)) for gbit in (1.0, 0.1)]
    assert far[0].parts["link"] < far[1].parts["link"] / 5
    inside = predicted("dp2.tp2", cluster=Cluster(per_node=2, gbit_per_s=0.1))
    assert inside.parts["link"] < far[1].parts["link"]  # tensor ranks are neighbours, on one machine
    assert near.parts["link"] <= far[1].parts["link"]


def test_recomputing_takes_longer_and_saves_memory() -> None:
    plain, again = predicted("dp2"), predicted("dp2", checkpointing="full")
    assert 1.15 < again.parts["compute"] / plain.parts["compute"] < 1.5
    assert again.memory.activations < plain.memory.activations


def test_zero_divides_states_and_tensor_ranks_divide_compute() -> None:
    assert predicted("dp2/zero3").memory.states < 0.75 * predicted("dp2").memory.states
    assert predicted("tp2").parts["compute"] < 0.75 * predicted("dp1", device=one_thread()).parts["compute"]


def one_thread() -> MeasuredDevice:
    return replace(DEVICE, cores=1, rates=DEVICE.rates[:1])


def test_passes_wait_for_each_other_and_share_cores() -> None:
    from paralab.layout.schedules import Pass

    order = [[Pass("F", 0, 0), Pass("B", 0, 0)], [Pass("F", 1, 0), Pass("B", 1, 0)]]

    def total_s(message_s: float = 0.0, links_s: float = 0.0) -> float:
        return makespan_s(
            order,
            lambda one: Took(1.0, links_s),
            lambda one: message_s,
            rank_of=lambda stage: stage,
            stages=2,
            speed=lambda ranks: 1.0,
        )

    assert total_s() == pytest.approx(4.0)
    assert total_s(message_s=0.5) == pytest.approx(5.0) and total_s(links_s=0.25) == pytest.approx(5.0)


def test_a_gradient_lies_beside_the_bucket_that_it_is_copied_into() -> None:
    config = replace(CONFIG, vocab_size=20_000, seq_len=4)  # the embedding is the output layer: two gradients meet
    plan = imagined.imagine(TINY, config, Layout.parse("dp2"), batch=2, run=RunConfig())
    assert step.predict(plan, DEVICE).memory.activations > 2.9 * 20_000 * config.hidden * 4


@pytest.mark.parametrize(
    ("model", "size", "layout", "more"),
    [
        ("gpt2", "2x64x4v8192", "dp2.tp2", {}),  # the gradient of all tokens, of which a tensor rank keeps a part
        ("llama", "2x64x8/4f96v8192", "dp2.tp2/zero1", {}),
        ("gpt2", "4x64x4v8192", "dp2.pp2/1f1b/mb2", {}),  # buckets, and the tied embedding sent, received and summed
        pytest.param("gpt2", "4x64x4v8192", "pp4/gpipe/mb4", {}, marks=pytest.mark.long),
        ("resnet", "20", "pp2/1f1b/mb4", {}),  # buffers for what each micro-batch brings
        ("gpt2", "2x64x4v257", "dp4/zero2", {}),  # all is gathered when backward begins
        ("llama", "2x64x8/4f96v257", "dp4/zero3", {"accumulation": 2}),  # two blocks are, beside what a block sends
        ("gpt2", "2x64x4v257", "dp2/zero3", {"precision": "bf16"}),  # weights are cast, and so are activations
        ("diffusion", "tiny-dit", "dp4/zero3", {"checkpointing": "full"}),
        pytest.param(
            "llama", "4x64x8/4f96v8192", "dp2.pp2/zero2/1f1b/mb2", {"precision": "bf16"}, marks=pytest.mark.long
        ),  # gradients wait in fp32
        ("llama", "4x64x8/4f96v2048", "dp2.pp2/zero3/interleaved/mb4", {}),  # those of all stages of a rank
    ],
)
def test_memory_is_what_a_dry_run_counts(model: str, size: str, layout: str, more: dict[str, Any]) -> None:
    length = 32 if model in ("gpt2", "llama") else None
    run = RunConfig(model=model, size=size, layout=Layout.parse(layout), global_batch_size=8, seq_len=length, **more)
    work = resolve(run, dry=True)
    counted = [one.memory for one in dry_run(work, backend="gloo")]
    rel = 0.01 if work.layout.zero < 2 else 0.04
    assert step.memory(work, traces(work)).total == pytest.approx(max(one.peak_bytes for one in counted), rel=rel)
    assert state_bytes(work).everywhere == pytest.approx(max(one.state_peak_bytes for one in counted), rel=0.01)


def test_states_are_those_of_a_plan_whatever_was_planned_before_it() -> None:
    for more in ({}, {"accumulation": 2}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.0}):
        run = RunConfig(layout=Layout.parse("dp4/zero3"), size="2x64x4v257", global_batch_size=8, **more)
        work = resolve(run, dry=True)
        assert states(work, 0) == state_bytes_of(work, 0)


def test_software_is_added_for_each_thing_that_an_axis_says_it_does() -> None:
    blocks, added_s = CONFIG.n_layers, 1e-3

    def extra(layout: str, what: Software) -> float:
        slower = replace(DEVICE, software={str(what): added_s})
        return (predicted(layout, device=slower).step_time_s - predicted(layout).step_time_s) / added_s

    assert extra("dp2/zero3", Software.SHARDED_MODULE) == pytest.approx(blocks + 1)  # and what is outside of them
    assert extra("dp2/zero2", Software.KEPT_MODULE) == pytest.approx(blocks + 1)
    parameters = len(list(TINY.on_meta(CONFIG).parameters()))
    assert extra("dp2", Software.REPLICATED_PARAMETER) == pytest.approx(parameters)
    assert extra("tp2", Software.SPLIT_LAYER) == pytest.approx(4 * blocks + 1)  # two in, two out; the embedding
    assert extra("tp2", Software.LOCAL_LAYER) == pytest.approx(1)  # the output layer
    assert extra("pp2/naive", Software.SPLIT_LAYER) == 0
    assert extra("pp2/1f1b/mb2", Software.KEPT_MODULE) == 0
    assert extra("pp2/naive", Software.PIPELINE_STAGE) == pytest.approx(2)  # one stage after the other
    assert extra("pp2/gpipe/mb4", Software.PIPELINE_STAGE) == pytest.approx(5, rel=0.1)  # one more than micro-batches
    assert extra("dp2.tp2", Software.SPLIT_LAYER) == pytest.approx(2 * (4 * blocks + 1))  # two processes to a core


def test_layouts_that_are_not_predicted_are_refused() -> None:
    with pytest.raises(LayoutError, match="measured device"):
        imagined.imagine(TINY, CONFIG, Layout.parse("cp2"), batch=8, run=RunConfig())


def test_the_search_puts_what_fits_first_and_recomputes_where_nothing_does() -> None:
    found = search.search(TINY, CONFIG, DEVICE, ranks=2, batch=4, run=RunConfig())
    times = [one.predicted.step_time_s for one in found]
    assert times == sorted(times) and all(one.fits for one in found)
    assert {"dp2", "dp2/zero3", "tp2/sp", "pp2/1f1b/mb2"} <= {str(one.plan.layout) for one in found}
    none = search.search(TINY, CONFIG, replace(DEVICE, memory_gib=0.01), ranks=1, batch=2, run=RunConfig())
    assert not any(one.fits for one in none) and any(one.plan.run.checkpointing == "full" for one in none)
    with pytest.raises(LayoutError, match="no layout of 5 ranks"):
        search.search(TINY, CONFIG, DEVICE, ranks=5, batch=1, run=RunConfig())


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "device.json"
    path.write_bytes(files.write(DEVICE))
    return str(path)


def test_cases_may_name_a_file_as_their_device(tmp_path: Path, file: str, capsys: pytest.CaptureFixture) -> None:
    cases = tmp_path / "cases.csv"
    shape = "2,32,4,257,16"
    lines = [f"{shape},2,4,{file},", f"{shape},2,4,H100-SXM-80GB,", f"{shape},2,4,{file},rotary"]
    cases.write_text("layers,hidden,heads,vocab,sequence_length,dp,global_batch_size,gpu,position\n" + "\n".join(lines))
    assert cli.main(["predict", str(cases)]) == 1
    out, said = capsys.readouterr()
    first, second, third = (line.split(",") for line in out.splitlines()[1:])
    assert "precision=fp32" in out.splitlines()[1] and float(first[1]) > 0 and float(second[1]) > 0 and third[1] == ""
    assert "line 4: a measured device is predicted from the operations of a model that paralab has" in said


def test_a_case_with_uneven_stages_is_that_layout(file: str) -> None:
    shape = {"layers": 6, "hidden": 32, "heads": 4, "vocab": 257, "sequence_length": 16, "pp": 3, "gpu": file}

    def layout(*stages: int) -> str:
        return str(imagined.of_case(settle({**shape, "layers_per_stage": stages})).layout)

    assert (layout(2, 2, 2), layout(1, 3, 2)) == ("pp3/1f1b/mb12", "pp3/1f1b/mb12/first1/last2")
    shape |= {"pp": 4, "layers": 8}
    with pytest.raises(LayoutError, match="stages2-3-1-2 is not what paralab trains"):
        layout(2, 3, 1, 2)


def test_plan_prints_a_line_to_type(file: str, capsys: pytest.CaptureFixture) -> None:
    words = [
        "--size",
        "2x32x4v257",
        "--sequence-length",
        "16",
        "--gpu",
        file,
        "--n-gpus",
        "2",
        "--global-batch-size",
        "4",
    ]
    assert cli.main(["plan", "--model", "gpt2", *words, "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert "paralab run --model gpt2 --size 2x32x4v257 --seq-len 16 --layout" in out and "a processor, 2 cores" in out
    assert max(map(len, out.splitlines()[:10])) <= 80
    assert cli.main(["plan", "--model", "gpt2", *words, "--tokens", "20x"]) == 2
    assert cli.main(["plan", "--model", "resnet", "--gpu", file, "--n-gpus", "2", "--sequence-length", "8"]) == 2


def test_questions_may_name_a_file_as_their_device(tmp_path: Path, file: str, capsys: pytest.CaptureFixture) -> None:
    questions = tmp_path / "questions.csv"
    header = "layers,hidden,heads,vocab,sequence_length,n_gpus,global_batch_size,gpu,pp\n"
    questions.write_text(f"{header}2,32,4,257,16,2,4,{file},2\n")
    assert cli.main(["plan", str(questions), "--top", "2"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3 and all(row.split(",")[4] == "2" for row in rows[1:])


@pytest.mark.parametrize("words", [["--seconds", "0"], ["--processes", "99"], ["--out", "/proc/device.json"]])
def test_calibrate_refuses_numbers_and_paths_that_cannot_be(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["calibrate", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_own_rows_correct_step_times_by_one_factor(tmp_path: Path, file: str, capsys: pytest.CaptureFixture) -> None:
    rows = tmp_path / "rows.csv"
    words = ["plan", "--model", "gpt2", "--size", "tiny", "--gpu", file, "--n-gpus", "1", "--global-batch-size", "4"]
    assert cli.main([*words, "--calibrate-from", str(rows)]) == 2  # there is no such file
    for name in ("dp1", "dp2", "tp2"):
        plan = imagined.imagine(TINY, TINY.config("tiny"), Layout.parse(name), batch=4, run=RunConfig())
        seconds = 3 * step.predict(plan, DEVICE).step_time_s
        row = run(layout=name, size="tiny", sequence_length=16, global_batch_size=4, step_time_p50_s=seconds)
        for again in (row, row, replace(row, run_id=f"{name}-none", step_time_p50_s=None)):  # neither counts
            append(rows, again)
        capsys.readouterr()
        status = cli.main([*words, "--calibrate-from", str(rows)])
        out, said = capsys.readouterr()
        assert (status == 0) == (name == "tp2"), said
    assert "multiplied by 3, from 3 measured rows: their mean error was 67%, and is 0%" in " ".join(out.split())
    assert cli.main(["plan", "--model", "gpt2", "--n-gpus", "8", "--calibrate-from", str(rows)]) == 2
