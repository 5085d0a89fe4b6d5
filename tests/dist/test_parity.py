"""Every strategy computes what one process computes: losses, gradient norms and every parameter after three steps.

Two tables run in fp32, the precision people train in, and are held to 1e-5. The options after them run in fp64 and
are held to 1e-10, where a wrong weight decay or clipping factor has nowhere to hide.
"""

from dataclasses import replace
from typing import Any

import pytest

from paralab.layout import Layout
from paralab.layout.strategies import STRATEGIES
from paralab.options.config import RunConfig
from tests.dist.cases import ALWAYS, SHALLOW
from tests.dist.workers import WorkerPool
from tests.tiny import TINY, divides

MODELS = {name: options | SHALLOW.get(name, {}) for name, options in TINY.items()}
DEEPER = {SHALLOW[name]["size"]: TINY[name]["size"] for name in SHALLOW}  # where those have too few blocks
PROCESSES = {2: ("ddp", "model", "pipeline", "zero1", "zero2", "zero3", "tensor"), 8: ("3d", "hsdp")}
PROCESSES[4] = (*PROCESSES[2], "2d", "hsdp")


def check(workers: WorkerPool, model: str = "gpt2", layout: str | None = None, **options: Any) -> None:
    """Train a case and one process, and compare."""
    if layout is not None:
        options["layout"] = Layout.parse(layout)
    run = RunConfig(**{"global_batch_size": 16, "steps": 20, **MODELS[model], **options})
    if run.layout is not None and run.layout.stages > 4:
        run = replace(run, size=DEEPER.get(str(run.size), run.size))
    result = workers.run("tests.dist.cases:parity_result", run)[0]
    assert result.passed, result
    if run.precision in ("bf16", "fp16"):
        assert result.grad_norm_difference > 1e-6, "this was no lower precision"


def check_exactly(workers: WorkerPool, model: str = "gpt2", layout: str | None = None, **options: Any) -> None:
    check(workers, model, layout, precision="fp64", **options)


def cases(model: str, layouts: list[str], **others: list[str]) -> pytest.MarkDecorator:
    """Run a test over layouts of one model, and over some layouts of others."""
    table = [(model, layout) for layout in layouts]
    return pytest.mark.parametrize(
        ("model", "layout"), table + [(other, layout) for other, few in others.items() for layout in few]
    )


def test_the_tables_hold_every_strategy() -> None:
    # These in test_context_parallel.py and test_expert.py: only some models have sequences, or experts.
    elsewhere = {"single", "context", "expert"}
    assert elsewhere.union(*PROCESSES.values()) == set(STRATEGIES)


@pytest.mark.parametrize(
    ("model", "nproc", "strategy"),
    [
        (model, nproc, strategy)
        for nproc in (2, 4, 8)
        for strategy in PROCESSES[nproc]
        for model in MODELS
        if (nproc != 4 or strategy not in PROCESSES[2] or model in ("gpt2", "resnet"))
        and divides(STRATEGIES[strategy].layout(nproc), model)
    ],
)
def test_every_strategy_with_every_model(workers: WorkerPool, model: str, nproc: int, strategy: str) -> None:
    check(workers, model, strategy=strategy, nproc=nproc)


# Each axis with each other; all ZeRO stages in three dimensions.
THREE_AXES = [f"dp2.tp2.pp2/zero{zero}/mb2" for zero in (1, 2, 3)]


@cases(
    "gpt2",
    [f"dp2.{axis}/zero{zero}" for axis in ("tp2", "pp2/gpipe") for zero in range(4)] + THREE_AXES,
    llama=THREE_AXES[2:],
    resnet=THREE_AXES,
    dit=THREE_AXES[2:],
    points=["dp2.tp2/zero3", "dp2.pp2/zero1/mb2"],
)
def test_axes_compose(workers: WorkerPool, model: str, layout: str) -> None:
    check(workers, model, layout)


# Each stage of ZeRO within groups of data ranks, alone and beside each other axis.
@cases(
    "gpt2",
    [
        "dp4/zero1/shard2",
        "dp8/zero2/shard2",
        "dp6/zero3/shard3",
        "dp4.tp2/zero1/shard2",
        "dp4.tp2/zero3/shard2/sp",
        "dp4.pp2/zero1/shard2/mb2",
        "dp4.pp2/zero3/shard2/zbv/mb2",
    ],
    resnet=["dp4/zero1/shard2", "dp4.tp2/zero3/shard2", "dp4.pp2/zero3/shard2/mb2"],
    vicreg=["dp4/zero1/shard2", "dp4.tp2/zero3/shard2"],
    dit=["dp4.tp2/zero3/shard2"],
    points=["dp8/zero3/shard2"],
)
def test_zero_within_groups(workers: WorkerPool, model: str, layout: str) -> None:
    check(workers, model, layout, global_batch_size=24 if "dp6" in layout else 16)


# GPT-2's tied embedding lies on both end ranks, or on rank 0 alone in the V-shaped schedules (zbv, dualpipev).
ON_2 = ["naive", "gpipe/mb4", "1f1b/mb2", "interleaved/mb4", "zero-bubble/mb2", "zbv/mb2", "dualpipev/mb4"]
ON_4 = ["naive", "gpipe/mb2", "1f1b/mb8", "interleaved/mb4", "zero-bubble/mb8", "zbv/mb4", "dualpipev/mb8"]
PIPELINES_OF_2 = [f"pp2/{schedule}" for schedule in ON_2]


@cases(
    "gpt2",
    PIPELINES_OF_2 + [f"pp4/{schedule}" for schedule in ON_4],
    llama=["pp2/zero-bubble/mb2", "pp4/zbv/mb4"],
    resnet=PIPELINES_OF_2,
    dit=PIPELINES_OF_2,
)
def test_every_schedule(workers: WorkerPool, model: str, layout: str) -> None:
    check_exactly(workers, model, layout)


@pytest.mark.parametrize("layout", [f"dp2.tp2.pp2/zero{i % 4}/{schedule}" for i, schedule in enumerate(ON_2)])
def test_every_schedule_in_three_dimensions(workers: WorkerPool, layout: str) -> None:
    check_exactly(workers, "gpt2", layout)


@cases(
    "gpt2",
    ["pp2/1f1b/mb4/first1", "dp2.tp2.pp2/zero3/mb2/first1/last3"],
    resnet=["pp2/interleaved/mb2/last3"],
)
def test_uneven_stages(workers: WorkerPool, model: str, layout: str) -> None:
    check_exactly(workers, model, layout)


# Of a schedule that takes any number of stages a rank: more than two, and one, which is ZB-H1.
@cases(
    "gpt2",
    ["pp2/interleavedx4/mb4", "pp2/zero-bubblex1/mb4", "dp2.tp2.pp2/zero2/zero-bubblex3/mb2/first1"],
)
def test_other_numbers_of_stages_a_rank(workers: WorkerPool, model: str, layout: str) -> None:
    check_exactly(workers, model, layout)


# Three is no power of two: a weight of 1/2 instead of 1/3 cannot pass.
@cases(
    "gpt2",
    [
        "dp1",
        "dp2",
        "dp2/zero1",
        "dp2/zero2",
        "dp2/zero3",
        "dp4/zero2/shard2",
        "dp4/zero3/shard2",
        "tp2",
        "dp2.tp2/zero3",
        "pp2/naive",
        "pp2/gpipe",
        "pp2/1f1b/mb2",
        "dp2.tp2.pp2/zero1/1f1b/mb2",
    ],
    mixtral=["dp2", "pp2/1f1b/mb2"],
    resnet=["dp1", "dp2", "dp2/zero3", "pp2/zbv/mb2"],
)
def test_accumulation(workers: WorkerPool, model: str, layout: str) -> None:
    check_exactly(workers, model, layout, accumulation=3, global_batch_size=24)


# SGD, because the step of Adam is the same whatever factor its gradients carry. The norm before clipping is above 1.
BITES: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "clip_norm": 0.05}


@cases(
    "gpt2",
    [
        "dp2",
        "dp2/zero1",
        "dp2/zero2",
        "dp2/zero3",
        "dp4/zero3/shard2",
        "tp4",
        "pp2/1f1b/mb2",
        "pp4/zbv/mb4",
        "dp2.tp2/zero1",
        "dp2.tp2.pp2/mb2",
        "dp2.tp2.pp2/zero1/mb2",
        "dp2.tp2.pp2/zero3/mb2",
    ],
    resnet=["dp2/zero3", "tp2", "pp2/1f1b/mb2", "dp2.tp2.pp2/zero1/mb2"],
    vicreg=["dp4", "dp2.tp2/zero3"],
)
def test_sgd_with_clipping_that_bites(workers: WorkerPool, model: str, layout: str) -> None:
    check_exactly(workers, model, layout, **BITES)


@pytest.mark.parametrize("layout", ["dp4/zero1", "dp2.tp2/zero1", "dp2.pp2/zero1/mb2"])
def test_gradients_in_several_buckets(workers: WorkerPool, layout: str) -> None:
    run = RunConfig(**MODELS["gpt2"], precision="fp64", layout=Layout.parse(layout), global_batch_size=16, steps=20)
    result = workers.run("tests.dist.cases:parity_result_with_small_buckets", run)[0]
    assert result.passed, result


@pytest.mark.parametrize("layout", ["dp2", "tp2", "pp2/1f1b/mb2", "dp2.tp2.pp2/zero3/mb2"])
def test_without_clipping(workers: WorkerPool, layout: str) -> None:
    check_exactly(workers, "gpt2", layout, clip_norm=None)


@cases(
    "gpt2",
    [
        "tp2/sp",
        "tp4/sp",
        "dp2.tp2/sp",
        "dp2.tp2/zero3/sp",
        "tp2.pp2/mb2/sp",
        "tp2.pp2/zbv/mb2/sp",
        "dp2.tp2.pp2/zero2/mb2/sp",
    ],
    llama=["tp4/sp", "dp2.tp2/zero3/sp", "tp2.pp2/zbv/mb2/sp"],
)
def test_sequence_parallel(workers: WorkerPool, model: str, layout: str) -> None:
    check_exactly(workers, model, layout, **BITES)


RECOMPUTED = ["dp1", "dp2", "dp2/zero3", "tp2", "pp2/1f1b/mb2", "pp2/zbv/mb2", "dp2.tp2.pp2/zero3/mb2"]


@cases(
    "gpt2",
    RECOMPUTED,
    llama=["pp2/zbv/mb2"],
    resnet=["dp2", "tp2", "pp2/zbv/mb2"],
    dit=["pp2/zbv/mb2"],
    points=["pp2/zero-bubble/mb2"],
)
def test_activation_checkpointing(workers: WorkerPool, model: str, layout: str) -> None:
    check_exactly(workers, model, layout, checkpointing="full")


@pytest.mark.parametrize("layout", ["dp2", "pp2/zbv/mb2"])
def test_activation_checkpointing_of_every_third_block(workers: WorkerPool, layout: str) -> None:
    check_exactly(workers, "gpt2", layout, checkpointing="3")


@cases("gpt2", ["dp2.tp2.pp2/zero3/mb2"], llama=["tp2/sp"], dit=["pp2/zbv/mb2"])
def test_recomputation_of_attention_alone(workers: WorkerPool, model: str, layout: str) -> None:
    check_exactly(workers, model, layout, checkpointing="selective")


MIXED = ["dp1", "dp2", "dp2/zero1", "dp2/zero3", "dp4/zero3/shard2", "tp2", "tp2/sp", "pp2/1f1b/mb2"]
MIXED += ["dp2.tp2.pp2/zero3/mb2"]


@cases(
    "gpt2",
    MIXED,
    llama=["dp2/zero3", "tp2/sp"],
    resnet=["dp2/zero3", "tp2"],
    points=["dp2"],
    dit=["dp2/zero3", "tp2", "pp2/1f1b/mb2"],
)
def test_bf16(workers: WorkerPool, model: str, layout: str) -> None:
    check(workers, model, layout, precision="bf16")


@cases("gpt2", ["dp2", "dp2/zero3", "tp2", "pp2/1f1b/mb2"])
def test_fp16(workers: WorkerPool, model: str, layout: str) -> None:
    check(workers, model, layout, precision="fp16")


# Adam forgives gradients that are still scaled, SGD does not.
@pytest.mark.parametrize("layout", ["dp1", "dp2/zero2", "tp2.pp2/mb2"])
def test_fp16_with_clipping_that_bites(workers: WorkerPool, layout: str) -> None:
    check(workers, "gpt2", layout, precision="fp16", **BITES)


# The real vocabulary, padded from 50,257 to 50,304 rows: its embedding is also large enough for the collectives that
# work in place instead of in buckets. And a small one, of which the last rank of eight holds padding alone.
@pytest.mark.parametrize("size", ["2x16x8", "2x16x8v257"], ids=["vocabulary", "padding"])
@pytest.mark.parametrize("layout", ["tp2", "tp4", "tp8", "tp2.pp2/mb2", "dp2/zero1", "dp2.tp4/zero3", "tp8/sp"])
def test_a_vocabulary_that_does_not_divide(workers: WorkerPool, size: str, layout: str) -> None:
    check_exactly(workers, "gpt2", layout, size=size, seq_len=8, global_batch_size=4)


# The small sizes of Llama share the output layer with the embedding, the large ones do not.
@pytest.mark.parametrize("layout", ["pp2/1f1b/mb2", "dp2.tp2.pp2/zero3/mb2/sp"])
def test_a_config_that_ties_its_ends(workers: WorkerPool, layout: str) -> None:
    check_exactly(workers, "llama", layout, size="4x32x8/4f48v257s4/1/4/16tied")


# Tokens that lose their places are the same ones, and so are the losses of the routers.
LIMITED = "2x32x8/4e8/2f24h16c0.7b0.5v257"


@pytest.mark.parametrize("layout", ["dp4", "tp2.pp2/mb2"])
def test_a_mixture_whose_experts_have_few_places(workers: WorkerPool, layout: str) -> None:
    check_exactly(workers, "mixtral", layout, size=LIMITED, accumulation=2, **BITES)


@pytest.mark.parametrize("norm", ["batch", "none", "group"])
@pytest.mark.parametrize("layout", ["dp2", "dp4/zero3", pytest.param("tp2", marks=ALWAYS), "dp2.tp2.pp2/mb2"])
def test_norms(workers: WorkerPool, norm: str, layout: str) -> None:
    check_exactly(workers, "resnet", layout, norm=norm)


@pytest.mark.parametrize("layout", ["dp4/zero3", "tp2", "dp2.tp2.pp2/mb2"])
def test_a_network_without_residual_connections(workers: WorkerPool, layout: str) -> None:
    check_exactly(workers, "resnet", layout, residual="off")


# A split backward stores weight gradients in the memory format that the kernels made.
@pytest.mark.parametrize("norm", ["syncbatch", "group"])
@pytest.mark.parametrize(
    "layout", ["tp2", pytest.param("pp2/zbv/mb2", marks=ALWAYS), "dp2.tp2.pp2/zero3/zero-bubble/mb2"]
)
def test_channels_last(workers: WorkerPool, norm: str, layout: str) -> None:
    check_exactly(workers, "resnet", layout, norm=norm, channels_last=True)


@pytest.mark.parametrize(
    ("layout", "accumulation", "checkpointing"),
    [
        ("dp2", 2, "full"),
        ("dp4/zero3", 1, "none"),
        ("tp2", 1, "full"),
        ("dp2.pp2/1f1b/mb2", 1, "none"),
        ("dp2.tp2.pp2/zero1/zbv/mb2", 1, "full"),
    ],
)
def test_running_statistics(workers: WorkerPool, layout: str, accumulation: int, checkpointing: str) -> None:
    run = RunConfig(
        **MODELS["resnet"],
        layout=Layout.parse(layout),
        accumulation=accumulation,
        checkpointing=checkpointing,
        global_batch_size=16,
        steps=20,
    )
    results = workers.run("tests.dist.cases:buffer_difference", run)[: run.layout.world_size]
    for buffers, difference in results:
        assert buffers > 0 and difference < 1e-10


@pytest.mark.parametrize(
    ("model", "layout", "options"),
    [
        ("gpt2", "dp1/offload-optimizer", {}),
        ("gpt2", "dp2.tp2/zero1/offload-optimizer", {}),
        ("resnet", "dp4/zero3/offload-parameters", {}),
        ("llama", "dp2.pp2/zero2/mb2/offload-parameters", {"precision": "bf16"}),
        ("gpt2", "dp2/zero3", {"checkpointing": "offload"}),
        ("dit", "pp2/zero-bubble/mb4", {"checkpointing": "offload"}),
    ],
)
def test_kept_by_the_host(workers: WorkerPool, model: str, layout: str, options: dict[str, Any]) -> None:
    check(workers, model, layout, **options)


# Shards begin with a block of 256 numbers where rows are as long as that or divide it; columns never do.
@pytest.mark.parametrize("layout", ["dp4/zero3", "dp2.pp2/zero1/mb2", "dp4/zero2/shard2", "tp4", "dp2.tp2/zero3/sp"])
def test_moments_in_eight_bits(workers: WorkerPool, layout: str) -> None:
    check(workers, "gpt2", layout, size="2x64x4v257", optimizer="adamw8bit")


@pytest.mark.parametrize(
    ("layout", "checkpointing"),
    [
        ("dp2", "2"),
        *(
            pytest.param(layout, "none", marks=pytest.mark.long)
            for layout in (
                "pp2/naive",
                "pp2/gpipe/mb2",
                "pp4/1f1b/mb4",
                "pp2/interleaved/mb4",
                "pp2/interleavedx3/mb2",
                "dp2.pp2/zero2/gpipe/mb2",
            )
        ),
    ],
)
def test_compiled(workers: WorkerPool, layout: str, checkpointing: str) -> None:
    check(workers, "gpt2", layout, compile="default", checkpointing=checkpointing)


@pytest.mark.parametrize("layout", ["dp2", "dp3/zero1", "dp2/zero2", "dp4/zero3", "dp4/zero3/shard2"])
def test_a_model_without_blocks(workers: WorkerPool, layout: str) -> None:
    run = RunConfig(model="logistic", size="7", layout=Layout.parse(layout), precision="fp64", accumulation=2, **BITES)
    result = workers.run("tests.dist.cases:parity_result", replace(run, global_batch_size=24))[0]
    assert result.passed, result


@pytest.mark.parametrize(
    ("model", "layout", "free_mb", "scope"),
    [
        ("gpt2", "dp2/zero3", 1000, "whole"),
        ("gpt2", "dp2/zero3", 3.5, "2 of 16 samples"),
        ("gpt2", "pp2/1f1b/mb2", 1.8, "2 of 4 blocks, 2 of 16 samples"),
        ("resnet", "dp2", 2, "2 of 8 blocks, 2 of 16 samples"),
        ("gpt2", "tp2", 0.1, "not proven: the reference does not fit"),
    ],
)
def test_parity_is_proved_on_what_fits(
    workers: WorkerPool, model: str, layout: str, free_mb: float, scope: str
) -> None:
    run = RunConfig(**MODELS[model], layout=Layout.parse(layout), global_batch_size=16, steps=20)
    got = workers.run("tests.dist.cases:parity_result_where_little_is_free", run, int(free_mb * 1e6))
    for chosen, result in got[: run.layout.world_size]:
        assert chosen == scope
        assert result is None if scope.startswith("not") else result.passed
