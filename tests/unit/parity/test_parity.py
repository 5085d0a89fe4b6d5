"""What a parity result is compared with, and that it fails for one parameter that was not updated, or twice as far."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import paralab.parity.prove as prove_module
from paralab import engines
from paralab.commands import verify_around
from paralab.layout import Division, Layout
from paralab.models import SPECS
from paralab.options.config import RunConfig
from paralab.parity import movement
from paralab.parity.beside import Pair
from paralab.parity.first import _wrong
from paralab.parity.movement import Compared, Measure, by_element, by_projection, by_rms, over_pieces
from paralab.parity.prove import _largest_relative, judge, prove
from paralab.parity.reference import STEPS, Trace, reference, reference_work, trace
from paralab.parity.result import ParityResult
from paralab.parity.scope import _parts, describe
from paralab.parity.tolerances import TOLERANCES, Tolerance, as_judged, tolerance_of
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh


def work_of(model: str = "gpt2", **options: Any) -> Work:
    run = RunConfig(model=model, size=SPECS[model].tiny_size, global_batch_size=8, steps=20, **options)
    return resolve(run)


RATES = {"adamw": 6e-4, "sgd": 0.1}
SOME = [
    "embed.tokens.weight",
    "embed.positions.weight",
    "blocks.0.norm1.weight",
    "blocks.2.attn.qkv.bias",
    "blocks.3.mlp.up.weight",
    "norm.bias",
]


class Alone:
    """A work trained in one process beside its reference; `parity_result` compares what the engine holds now."""

    def __init__(self, **options: Any) -> None:
        self.work = work_of(**options, strategy="single")
        self.mesh = Mesh(self.work.layout, torch.device("cpu"))
        self.want = reference(self.work, self.mesh)
        engine, _ = trace(self.work, self.mesh, steps=0)
        self.start = {name: p.detach().clone() for name, p in engine.parameters()}
        self.engine, self.got = trace(self.work, self.mesh, steps=STEPS)

    @torch.no_grad()
    def parity_result(self, name: str | None = None, times: float = 1.0) -> ParityResult:
        """Compare; with a name after that parameter has moved so many times as far as it did."""
        parameter = dict(self.engine.parameters())[name] if name else torch.empty(0)
        end = parameter.clone()
        if name:
            parameter.copy_(self.start[name] + times * (end - self.start[name]))
        result = judge(self.engine, self.got, self.want, self.work, self.mesh)
        parameter.copy_(end)
        return result


@pytest.mark.parametrize("options", [{}, {"lr_warmup_steps": 1000}], ids=["", "warm-up"])
@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", RATES)
def test_one_parameter_left_alone_or_moved_twice_as_far_is_seen(
    optimizer: str, precision: str, options: dict[str, Any]
) -> None:
    alone = Alone(precision=precision, optimizer=optimizer, learning_rate=RATES[optimizer], **options)
    right = alone.parity_result()
    assert right.passed and str(right) == "passed", right
    for name in SOME:
        for times in (0.0, 2.0):
            wrong = alone.parity_result(name, times)
            assert not wrong.passed and wrong.worst_parameter == name, (name, times)
            assert wrong.parameter_difference == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("optimizer", RATES)
def test_so_it_is_in_a_model_with_kinks(optimizer: str, precision: str) -> None:
    alone = Alone(model="resnet", precision=precision, optimizer=optimizer, learning_rate=RATES[optimizer])
    assert alone.parity_result().passed
    for name in ("stem.conv.weight", "blocks.7.norm2.bias", "head.linear.weight"):
        for times in (0.0, 2.0):
            wrong = alone.parity_result(name, times)
            assert not wrong.passed and wrong.worst_parameter == name, (name, times)


def test_a_parameter_that_no_rank_compares_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Alone()
    there = dict(alone.engine.parameters())
    left = {name: p for name, p in there.items() if not name.startswith("norm.")}
    monkeypatch.setattr(alone.engine, "parameters", lambda: iter(left.items()))
    wrong = alone.parity_result()
    assert not wrong.passed and str(wrong) == "FAILED: norm.bias was compared on no rank (2 parameter(s) were not)"
    monkeypatch.setattr(alone.engine, "parameters", lambda: iter(()))
    assert judge(alone.engine, alone.got, alone.want, alone.work, alone.mesh).missing == tuple(sorted(there))


def test_parameters_are_compared_while_they_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ZeRO-3 of DeepSpeed has them: each is there until the next one is requested."""
    alone = Alone()
    there = dict(alone.engine.parameters())

    def gathered() -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in there.items():
            whole = parameter.detach().clone()
            yield name, whole
            whole.resize_(0)

    monkeypatch.setattr(alone.engine, "parameters", gathered)
    right = judge(alone.engine, alone.got, alone.want, alone.work, alone.mesh)
    assert right.passed and right.parameters == len(there)


@pytest.mark.parametrize("rate", [1e-3, 1e-5, 1e-7])
def test_a_small_learning_rate_hides_nothing_that_can_be_told_from_rounding(rate: float) -> None:
    alone = Alone(learning_rate=rate)
    right, wrong = alone.parity_result(), alone.parity_result("blocks.3.mlp.up.bias", 0.0)
    assert right.passed and not wrong.passed
    # the weights of norms are 1: less than three roundings of that are not seen
    assert (right.unjudged > 0) == (rate < 1e-6) and ("move no further" in str(right)) == (rate < 1e-6)


def test_at_a_learning_rate_of_zero_nothing_may_move() -> None:
    alone = Alone(learning_rate=0.0)
    right = alone.parity_result()
    assert right.passed and right.unjudged == right.parameters > 0 and "none may" in str(right)
    with torch.no_grad():
        dict(alone.engine.parameters())["norm.weight"].add_(1e-4)
    wrong = alone.parity_result()
    assert not wrong.passed and wrong.worst_parameter == "norm.weight"


def test_a_skipped_step_of_fp16_is_taken_again_with_a_smaller_loss_scale() -> None:
    work = work_of("diffusion", precision="fp16", strategy="single", seed=1)
    mesh = Mesh(work.layout, torch.device("cpu"))
    first = engines.build(work.context(mesh), "torch").step(next(training_batches(work, mesh)))
    assert not first.grad_norm.isfinite(), "nothing overflows: take another seed"
    assert prove(work, mesh, reference(work, mesh)).passed


def compare(piece: list[float], start: list[float], end: list[float], measure: Measure) -> Compared:
    tensors = (torch.tensor(values) for values in (piece, start, end))
    got, before, after = tensors
    return movement.compare(
        "w", got, where=(), start=before, end=after, noise=0.01, steps=3, tolerance=0.1, measure=measure
    )


def test_differences_by_hand() -> None:
    start, end = [0.0, 0.0], [1.0, 2.0]
    assert compare([1.0, 1.0], start, end, by_element).difference == pytest.approx(1 / 2)
    assert compare([1.0, 1.0], start, end, by_rms).difference == pytest.approx(5**-0.5)
    by_all = over_pieces([compare([1.0, 1.0], start, end, by_projection)], by_projection)
    assert by_all == {"w": pytest.approx((1 - 3 / 5) / 2)}
    for measure in (by_element, by_rms, by_projection):
        assert compare([float("nan"), 1.0], start, end, measure).difference in (float("inf"), 0.0)
        assert over_pieces([compare([float("nan"), 1.0], start, end, measure)], measure) == {"w": float("inf")}
        # what the reference leaves alone may not move
        assert over_pieces([compare([0.0, 1.0], start, start, measure)], measure)["w"] > 1


def test_an_element_without_a_gradient_but_rounding_is_not_judged_in_low_precision() -> None:
    """As the bias of an attention key: Adam makes full steps of what is left of a gradient of zero."""
    noise = [1e-3, 1.0]
    assert compare([-1.0, 1.0], [0.0, 0.0], noise, by_rms).difference == 0.0
    assert compare([-1.0, 0.0], [0.0, 0.0], noise, by_rms).difference == pytest.approx(1.0)
    alone = compare([-1.0], [0.0], [1e-3], by_rms)
    assert alone.difference == 0.0 and not alone.judged
    lost = compare([0.5, -0.5], [0.4, 0.4], [0.4, 0.401], by_rms)  # beside values in which a step can be lost
    assert lost.difference == 0.0 and not lost.judged


def test_a_piece_counts_as_the_rank_has_it_that_is_furthest_off() -> None:
    right, wrong = (compare([x, 2 * x], [0.0, 0.0], [1.0, 2.0], by_projection) for x in (1.0, 0.0))
    assert over_pieces([right, wrong, right], by_projection) == {"w": 0.5}


@pytest.mark.parametrize("size", [1.0, 1e-4])
@pytest.mark.parametrize("field", ["losses", "grad_norms"])
@pytest.mark.parametrize(
    ("options", "loss_off", "norm_off"),
    [
        ({}, 1e-4, 1e-4),
        ({"precision": "fp64"}, 1e-9, 1e-9),
        ({"precision": "bf16"}, 0.03, 0.2),  # of a gradient norm, one sample too many of a few
        ({"precision": "fp16"}, 0.01, 0.2),
        ({"optimizer": "adamw8bit"}, 1e-4, 2e-3),
    ],
    ids=["fp32", "fp64", "bf16", "fp16", "8 bits"],
)
def test_a_loss_or_norm_that_is_off_is_seen(
    options: dict[str, Any], loss_off: float, norm_off: float, field: str, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a share of it, however small it is."""
    monkeypatch.setattr(prove_module, "_compare", lambda *given, **options: iter(()))
    work = work_of(strategy="single", **options)
    mesh = Mesh(work.layout, torch.device("cpu"))
    right = Trace([size], [size])
    wrong = replace(right, **{field: [size * (1 + (loss_off if field == "losses" else norm_off))]})  # type: ignore
    engine: Any = None
    assert judge(engine, right, right, work, mesh).passed
    assert not judge(engine, wrong, right, work, mesh).passed


def test_the_reference_is_plain_whatever_the_run_is() -> None:
    options: dict[str, Any] = {"checkpointing": "full", "compile": "default", "precision": "bf16", "accumulation": 2}
    sent: dict[str, Any] = {"outer_optimizer": "nesterov", "outer_fragments": 2, "outer_overlap": 1}
    run = reference_work(work_of(layout="dp2/local4", **options, **sent)).run
    assert run == reference_work(work_of(layout="dp1", accumulation=2)).run
    assert (run.compile, run.checkpointing, run.precision, str(run.layout)) == ("none", "none", "fp32", "dp1")


@pytest.mark.parametrize("worst_rank", range(4))
def test_the_worst_parameter_of_all_ranks_counts(worst_rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(layout="dp4")
    gathered = [
        [Compared(f"of rank {rank}", (), 0.25 * (1 + (rank == worst_rank)), judged=rank > 0, along=1.0, squared=1.0)]
        for rank in range(4)
    ]
    monkeypatch.setattr(prove_module, "_compare", lambda engine, want, work, **options: gathered[0])
    monkeypatch.setattr(
        prove_module.dist, "all_gather_object", lambda got, mine, group: got.__setitem__(slice(None), gathered)
    )
    mesh: Any = SimpleNamespace(world=object())
    names = {f"of rank {rank}": torch.empty(0) for rank in range(4)}
    result = judge(Any, Trace([2.0, 3.0], [4.0]), Trace([2.0, 2.0], [5.0], names), work, mesh)  # type: ignore
    assert (result.parameter_difference, result.worst_parameter) == (0.5, f"of rank {worst_rank}")
    assert (result.parameters, result.unjudged) == (4, 1)
    assert (result.loss_difference, result.grad_norm_difference) == (1.0 / 2.0, 1.0 / 5.0)


@pytest.mark.parametrize(
    ("model", "options", "precision"),
    [
        ("resnet", {"layout": "dp2"}, "fp64"),
        ("resnet", {"layout": "dp2", "engine": "accelerate"}, "fp64"),
        ("resnet", {"layout": "dp2", "engine": "deepspeed"}, "fp32"),
        ("resnet", {"layout": "dp2/zero1", "engine": "accelerate"}, "fp32"),  # by DeepSpeed
        ("resnet", {"layout": "dp2", "precision": "bf16"}, "bf16"),
        ("gpt2", {"layout": "dp2"}, "fp32"),
    ],
)
def test_models_with_kinks_are_judged_in_fp64_where_the_engine_can(
    model: str, options: dict[str, Any], precision: str
) -> None:
    assert as_judged(work_of(model, **options)).run.precision == precision


def test_only_the_norm_of_other_engines_is_judged_less_strictly() -> None:
    ours, theirs = (tolerance_of(work_of(layout="dp2", engine=engine)) for engine in ("torch", "deepspeed"))
    assert (ours.loss, ours.parameters) == (theirs.loss, theirs.parameters)
    assert ours.grad_norm == 1e-5 < theirs.grad_norm == 1e-3


def test_running_statistics_are_compared() -> None:
    alone = Alone(model="resnet", precision="fp64")
    assert alone.parity_result().passed
    buffers = dict(alone.engine.parts[0].named_buffers())
    for name in ("stem.norm.running_mean", "blocks.3.norm1.running_var"):
        buffers[name].mul_(1.001)
        wrong = alone.parity_result()
        assert not wrong.passed and wrong.worst_parameter == name
        buffers[name].div_(1.001)


def test_a_reference_that_accumulates_is_said() -> None:
    """A pipeline takes the statistics of each micro-batch; a process that takes the whole batch has other ones."""
    said = {layout: str(result(work_of("resnet", layout=layout))) for layout in ("dp1", "pp2/1f1b/mb4")}
    assert said["dp1"] == "passed"
    assert said["pp2/1f1b/mb4"] == "passed, against one process that accumulates 4 micro-batches"


def result(work: Work) -> ParityResult:
    """Return the result of an engine that is the reference itself."""
    mesh = Mesh(Layout(), torch.device("cpu"))
    engine, got = trace(reference_work(work), mesh, steps=1)
    want = reference(work, mesh, steps=1)
    return judge(engine, got, want, work, mesh)


def test_what_surrounds_the_steps_agrees_and_is_seen_where_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(strategy="single", precision="fp64", accumulation=2)
    mesh = Mesh(work.layout, torch.device("cpu"))
    names = ["data order", "validation loss", "resumed in one process"]
    found = verify_around.compare(work, mesh, validates=True)
    assert [(x.name, x.passed) for x in found] == [(name, True) for name in names]
    monkeypatch.setattr(Division, "rows_of", lambda division, dp_rank: list(reversed(range(8))))
    monkeypatch.setattr(verify_around.checkpoint, "load", lambda engine, folder: STEPS)
    assert [x.passed for x in verify_around.compare(work, mesh, validates=False)] == [False, False]


def test_the_worst_piece_of_a_parameter_counts_and_noise_is_no_movement() -> None:
    pieces = [Compared("w", ((i, i + 1),), difference, True, 0.0, 0.0) for i, difference in enumerate((0.1, 0.5, 0.2))]
    assert over_pieces(pieces, by_element) == {"w": 0.5}
    assert by_element(torch.tensor([0.0, 0.05]), torch.zeros(2), 0.02, 0.01) == pytest.approx(0.5)  # of 10 times noise
    assert by_element(torch.tensor([0.0, 0.05]), torch.ones(2), 1.0, 0.01) == pytest.approx(0.05)


def test_a_loss_that_is_no_number_differs_by_more_than_any_tolerance() -> None:
    assert _largest_relative([1.0, float("nan"), 1.0], [1.0, 1.0, 1.0]) == float("inf")
    assert _largest_relative([0.5, 3.0], [1.0, 2.0]) == 0.5


def test_what_is_wrong_first_in_the_order_of_one_process_is_named() -> None:
    def pair(phase: int, place: int, gap: float, size: float) -> Pair:
        return Pair(phase, place, f"{phase}.{place}", "value", 0, gap, size)

    fine, tiny, early, late = pair(0, 0, 1e-5, 1.0), pair(0, 1, 5e-5, 1e-6), pair(1, 2, 0.5, 1.0), pair(2, 0, 9.0, 1.0)
    found = list(_wrong([late, early, tiny, fine], "fp32"))
    assert [one.about for one, _ in found] == ["1.2"], "what is all but zero is compared with the others of its kind"


def test_models_with_kinks_and_other_engines_have_wider_tolerances() -> None:
    def of(model: str, **options: Any) -> Tolerance:
        return tolerance_of(resolve(RunConfig(model=model, size="tiny", nproc=1, strategy="single", **options)))

    smooth, rough = of("gpt2"), of("resnet")
    assert smooth == TOLERANCES["fp32"] and rough == replace(TOLERANCES["fp16"], parameters=0.45)
    assert of("gpt2", engine="deepspeed").grad_norm == 1e-3
    assert of("resnet", engine="deepspeed").grad_norm == rough.grad_norm > 1e-3, "never a narrower one"


def test_a_part_of_a_work_says_how_much_it_is() -> None:
    work = resolve(
        RunConfig(model="gpt2", size="6x32x4v257", layout=Layout.parse("pp3/1f1b/mb3"), global_batch_size=12)
    )
    *_, least = _parts(work)
    assert describe(work, work) == "whole" and describe(least, work) == "3 of 6 blocks, 3 of 12 samples"
