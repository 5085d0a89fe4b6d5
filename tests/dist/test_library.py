"""A module of a program's own computes under every layout what one process does: the proof, and a loop by hand."""

import re
from typing import Any

import pytest

from tests.dist.cases import ALWAYS
from tests.dist.own_modules import KINDS
from tests.dist.workers import WorkerPool


# Always: parameters that ranks do not use, or that are numbers; experts that are called with tokens.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[ALWAYS] if name in ("routed", "mixtral") else []) for name in KINDS]
)
def test_a_kind_of_module_holds_under_every_layout(workers: WorkerPool, name: str) -> None:
    layouts = KINDS[name].layouts
    for layout, found in zip(layouts, workers.run("tests.dist.library_cases:holds", name, layouts, {})[0], strict=True):
        assert found["passed"], f"{layout}: {found['proof']}"
        assert found["kept"], f"{layout}: values are not those that the module came with"
        assert found["loss"] < 1e-10 and found["values"] < 1e-10, f"{layout}: {found}"


@pytest.mark.parametrize(
    "options",
    [{"checkpointing": "full"}, {"checkpointing": 2, "accumulation": 2, "clip_norm": 0.1}],
    ids=["checkpointing", "accumulation-and-clipping"],
)
def test_options_of_a_step_hold(workers: WorkerPool, options: dict[str, Any]) -> None:
    layouts = ("dp2", "dp2/zero3", "tp2", "pp2/1f1b/mb2")
    found = workers.run("tests.dist.library_cases:holds", "frozen", layouts, options)[0]
    for layout, held in zip(layouts, found, strict=True):
        assert held["passed"] and held["loss"] < 1e-10 and held["values"] < 1e-6, f"{layout}: {held}"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_are_proven_too(workers: WorkerPool, precision: str) -> None:
    layouts = ("dp2", "dp2/zero3", "tp2", "pp2/1f1b/mb2")
    found = workers.run("tests.dist.library_cases:proofs", layouts, {"precision": precision})[0]
    for layout, (proof, passed, losses) in zip(layouts, found, strict=True):
        assert passed, f"{layout}: {proof}"
        assert losses == pytest.approx(found[0][2], rel=1e-2)


def test_dropout_is_of_the_samples_not_of_the_pieces(workers: WorkerPool) -> None:
    """Ranks that share samples drop alike, others otherwise; recomputed activations drop as the first ones did."""
    layouts = ("tp2", "dp2", "dp2/zero3", "dp2.tp2", "pp2/1f1b/mb2")
    ranks = workers.run("tests.dist.library_cases:dropped", layouts)
    for i, layout in enumerate(layouts):
        found = ranks[0][i]
        assert found["losses"]["full"] == pytest.approx(found["losses"]["none"], rel=1e-12), layout
        assert found["kept"][0] != found["kept"][1], "each step drops otherwise"
        said = found["said"]
        assert said.startswith("passed") if layout == "tp2" else "layers.0.dropout drops at random" in said, said
    (tp, dp, zero, both), other = [found["last"] for found in ranks[0][:4]], [found["last"] for found in ranks[1][:4]]
    assert 0 < sum(tp) < len(tp) and other[0] == tp and other[3] == both
    assert dp == zero == both and other[1] == other[2] == ranks[2][3]["last"] == ranks[3][3]["last"] != dp


def test_dropout_by_a_function_is_refused_with_its_line(workers: WorkerPool) -> None:
    whole, *split = workers.run("tests.dist.library_cases:said_of_functions", ("tp2", "dp2", "dp2/zero3"))[0]
    assert whole.startswith("passed"), whole
    for said in split:
        assert re.match(r"library_cases\.py:\d+ draws random numbers in forward \(\w*(dropout|bernoulli)\w*\)", said), (
            said
        )


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [("class", "lambda"), ("two groups", "one cycle"), ("own", None)],
)
def test_an_optimizer_of_the_program_updates_as_in_one_process(
    workers: WorkerPool, optimizer: str, scheduler: str | None
) -> None:
    layouts = ("dp2", "dp2/zero1", "dp2/zero3", "tp2", "pp2/1f1b/mb2")
    found = workers.run("tests.dist.library_cases:optimized", layouts, optimizer, scheduler)[0]
    for layout, held in zip(layouts, found, strict=True):
        if optimizer == "own" and layout == "dp2/zero1":
            assert "not known to update each element by itself, and under zero1" in held["refused"]
        else:
            assert held["loss"] < 1e-10 and held["values"] < 1e-10, f"{layout}: {held}"


def test_an_optimizer_sees_whole_parameters_or_is_refused(workers: WorkerPool) -> None:
    """Muon makes matrices orthogonal as wholes; others cannot compute with a sharded tensor, and that is said."""
    for held in workers.run("tests.dist.library_cases:optimized_by_muon", ("dp2", "dp2/zero3"))[0]:
        assert held["loss"] < 1e-10 and held["values"] < 1e-10, held
    for optimizer in ("adafactor", "plainly"):
        whole, zero1, *sharded = workers.run(
            "tests.dist.library_cases:optimized", ("dp2", "dp2/zero1", "dp2/zero3", "tp2"), optimizer, None
        )[0]
        assert whole["loss"] < 1e-10 and "under zero1 a rank sees some rows" in zero1["refused"]
        assert all("does not update sharded tensors (DTensor)" in found["refused"] for found in sharded)


def test_a_shuffling_loader_stays_alike_on_all_ranks(workers: WorkerPool) -> None:
    """Dropout in between draws from generators of its own, so that epochs are those of a loader alone."""
    ranks = workers.run("tests.dist.library_cases:epochs", ("dp2", "dp2.tp2/zero3"))
    for found in (*(rank[0] for rank in ranks[:2]), *(rank[1] for rank in ranks[:4])):
        assert found["training"] == found["alone"] == ranks[0][0]["alone"]
        assert len({tuple(order) for order in found["training"]}) == 3 and len(found["losses"]) == 9


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("a smaller last one", "6 steps"),
        ("a sampler", "the loader has a DistributedSampler, which gives every rank rows of its own: leave it out"),
        ("an order of its own", "batch 0 is another one on rank 1 than on rank 0: .* generator="),
        ("an early end", "the batches end after 2 on rank 1 and go on on rank 0"),
        ("a last one that does not divide", "a batch of 3 rows does not divide by dp 2 .* drop_last=True"),
    ],
)
def test_batches_that_do_not_fit_are_said_on_every_rank(workers: WorkerPool, mistake: str, said: str) -> None:
    first, second, *_ = workers.run("tests.dist.library_cases:mistaken", mistake)
    assert first == second and re.match(said, first), first


def test_values_are_kept_and_other_ranks_make_none(workers: WorkerPool) -> None:
    layouts = ("dp2", "dp2/zero1", "dp2/zero3", "tp2", "pp2/1f1b/mb2", "dp2.tp2/zero3")
    for number, rank in enumerate(workers.run("tests.dist.library_cases:values_and_places", layouts)[:4]):
        for layout, found in zip(layouts, rank, strict=True):
            assert not found or (found["kept"] and found["on"] == ["meta" if number else "cpu"]), (layout, found)


def test_drawn_values_are_those_of_the_name_under_every_layout(workers: WorkerPool) -> None:
    whole, *others = workers.run("tests.dist.library_cases:drawn", ("dp2", "dp2/zero3", "tp2", "pp2/1f1b/mb2"))[0]
    assert whole["norm.bias"].item() == len("norm.bias") * 16 and len(set(map(float, whole.values()))) > 10
    assert all(other == whole for other in others)
