"""Mixtures whose layers are of two kinds: with experts, some that every token meets among them, and dense ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from paralab.axes.costs import Pass, Plan
from paralab.axes.data.cost import fullest_weights
from paralab.axes.expert.cost import ExpertCost
from paralab.axes.weights import active_weights, all_weights, layer_weights
from paralab.errors import ModelError
from paralab.models import SPECS
from paralab.planning import compute, memory, shapes, steptime
from paralab.planning.constants import shipped
from paralab.planning.search import search
from paralab.planning.settle import arrays, settle
from paralab.planning.stages import WithExperts, held_by

QWEN = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 151936, "head_dim": 128}
QWEN |= {"moe_intermediate_size": 768, "num_experts": 64, "num_experts_per_tok": 8, "intermediate_size": 6144}
GLM = {"hidden_size": 5120, "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128}
GLM |= {"intermediate_size": 12288, "moe_intermediate_size": 1536, "n_routed_experts": 160, "first_k_dense_replace": 3}
ERNIE = {"moe_layer_start_index": 1, "moe_num_shared_experts": 2}


@pytest.mark.parametrize(
    ("config", "columns"),
    [
        (transformers.DeepseekV3Config(num_hidden_layers=5), (18432, 2048, 2048, 3, 1)),
        (transformers.Glm4MoeConfig(num_hidden_layers=5, **GLM), (12288, 1536, 1536, 3, 1)),
        (transformers.Qwen2MoeConfig(num_hidden_layers=3), (5632, 1408, 5632, 0, 1)),
        (transformers.Ernie4_5_MoeConfig(num_hidden_layers=4, **ERNIE), (12288, 1536, 3072, 1, 1)),
        (transformers.Qwen3MoeConfig(num_hidden_layers=7, decoder_sparse_step=3, **QWEN), (6144, 768, 0, 0, 3)),
        (transformers.Qwen3MoeConfig(num_hidden_layers=4, mlp_only_layers=[0, 1], **QWEN), (6144, 768, 0, 2, 1)),
        (transformers.Qwen3MoeConfig(num_hidden_layers=4, mlp_only_layers=[1, 2], **QWEN), (6144, 768, 0, 2, 1)),
    ],
    ids=("deepseek_v3", "glm4_moe", "qwen2_moe", "ernie4_5_moe", "every_third", "first_two", "out_of_order"),
)
def test_all_weights_of_a_mixture_are_planned(config: Any, columns: tuple[int, ...], tmp_path: Path) -> None:
    """Of real widths and a few layers; latent attention has fewer weights than its heads say."""
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
    config.save_pretrained(tmp_path)
    model, raw = shapes.find(f"hf:{tmp_path}", None)
    case = settle({**raw, "n_gpus": 1}).case
    latent = config.model_type == "deepseek_v3"
    assert float(all_weights(case)) == pytest.approx(model.n_weights, rel=0.015 if latent else 0.0002)
    found = [raw.get(name, 0) for name in ("ffn", "expert_ffn", "shared_ffn", "dense_layers")]
    assert (*found, raw.get("experts_every", 1)) == columns


def test_a_shared_expert_of_paralab_is_planned() -> None:
    spec = SPECS["mixtral"]
    model, raw = shapes.find("mixtral", "4x128x4e8/2h192")
    assert raw["shared_ffn"] == 192 and spec.config("4x128x4e8/2h192").shared_ffn == 192
    assert float(all_weights(settle({**raw, "n_gpus": 1}).case)) == pytest.approx(model.n_weights, rel=1e-4)


SHAPE = {"layers": 16, "hidden": 2048, "heads": 16, "kv_heads": 4, "ffn": 8192, "gated": True, "vocab": 32000}
EXPERTS = {"experts": 32, "experts_per_token": 4, "expert_ffn": 1024, "shared_ffn": 2048, "dense_layers": 3}
ATTENTION, NORMS = 2048 * 128 * 2 * (16 + 4), 2 * 2048
DENSE = ATTENTION + NORMS + 3 * 2048 * 8192
MIXTURE = ATTENTION + NORMS + 3 * 2048 * (32 * 1024 + 2048) + 2048 * 32
ACTIVE = MIXTURE - 3 * 2048 * 28 * 1024
ENDS = 2 * 32000 * 2048


def plan_of(**cells: Any) -> Plan:
    """Return the plan of one case."""
    case, machine = arrays([settle({"gpu": "H100-SXM-80GB", **SHAPE, **EXPERTS, **cells})])
    return Plan(case, machine, shipped())


def test_weights_are_those_of_both_kinds_of_layers() -> None:
    case = plan_of().case
    assert all_weights(case)[0] == 3 * DENSE + 13 * MIXTURE + ENDS
    assert active_weights(case)[0] == 3 * DENSE + 13 * ACTIVE + ENDS
    every_fourth = plan_of(dense_layers=0, experts_every=4).case
    assert all_weights(every_fourth)[0] == 12 * DENSE + 4 * MIXTURE + ENDS


def test_every_cost_of_an_average_layer_lies_between_those_of_both_kinds() -> None:
    """In proportion to how many there are: seconds on the device, for links and on the host, and bytes."""
    plan = plan_of(dp=16, ep=8, zero=3, global_batch_size=64, gpus_per_node=4)

    def costs(share: float) -> np.ndarray:
        of = plan.of(plan.case.with_mixture(np.array([share])))
        one = steptime.layer(of)
        figures = (one.device.both_s, one.host.both_s, memory.kept_bytes(of), memory.waiting_bytes(of))
        routed = compute.elementwise(of).both_s
        return np.array([float(x[0]) for x in (*figures, one.waits.both_s, routed, layer_weights(of.case))])

    dense, mixture = costs(0.0), costs(1.0)
    assert np.all(np.abs(mixture / dense - 1) > 0.01)  # each differs
    for share in (0.25, 0.75):
        assert costs(share) == pytest.approx((1 - share) * dense + share * mixture, rel=0.03)
    every, some = (plan.of(plan.case.with_mixture(np.array([share]))) for share in (1.0, 0.25))
    waits, fewer = (float(ExpertCost().in_layer(of, Pass()).both_s[0]) for of in (every, some))
    assert fewer == pytest.approx(waits / 4)
    plain = plan_of(dp=16, zero=3, global_batch_size=64, gpus_per_node=4, **dict.fromkeys(EXPERTS, 0))
    one = steptime.layer(plain)
    figures = (one.device.both_s, one.host.both_s, memory.kept_bytes(plain))
    assert dense[:3] == pytest.approx([float(x[0]) for x in figures])  # those of a dense model


def test_a_shared_expert_costs_what_a_dense_mlp_does() -> None:
    """Beside its own products nothing: a dense MLP that is wider by as much takes as much longer."""
    thin, wide = (steptime.layer(plan_of(dense_layers=0, shared_ffn=n, tp=2)).device.both_s[0] for n in (2048, 8192))
    experts = dict.fromkeys(EXPERTS, 0)
    narrow, broad = (steptime.layer(plan_of(**experts, ffn=n, tp=2)).device.both_s[0] for n in (2048, 8192))
    assert wide - thin == pytest.approx(broad - narrow, rel=0.02)


def test_each_stage_holds_the_layers_it_has() -> None:
    """Four stages of four layers, of which the first one has the three that are dense."""
    plan = plan_of(pp=4, dp=1, global_batch_size=8, framework="megatron-lm")
    held = [float(rank["states"][0]) for rank in memory.by_rank(plan)]
    of = (3 * DENSE + MIXTURE + ENDS / 2, 4 * MIXTURE, 4 * MIXTURE + ENDS / 2)
    assert [held[1] / held[0], held[2] / held[0]] == pytest.approx([of[1] / of[0], of[2] / of[0]])
    assert fullest_weights(plan.case).total[0] == of[2]
    ranks = (("first", 0), ("last", 3))
    kept = [float(memory.rank_kept_bytes(plan.of_rank(name), name, number)[0]) for name, number in ranks]
    dense, mixture = (memory.kept_bytes(plan.of(plan.case.with_mixture(share)))[0] for share in (0.0, 1.0))
    assert kept == pytest.approx([4 * (3 * dense + mixture), 4 * mixture])
    seconds = steptime.all_ranks(plan, steptime.layer(plan))
    assert seconds.first_s[0] != pytest.approx(seconds.middle_s[0], rel=0.02)
    causes = steptime.causes(plan, steptime.step(plan))
    assert sum(float(x[0]) for x in causes.values()) == pytest.approx(steptime.step_time_s(plan)[0])
    alike = plan_of(pp=4, dp=1, global_batch_size=8, framework="megatron-lm", dense_layers=0)
    of_last = steptime.causes(alike, steptime.step(alike))  # which is the slowest in both
    assert causes["compute"][0] == pytest.approx(of_last["compute"][0])


def test_zero_gathers_the_largest_layer() -> None:
    """In a model of which most layers are dense, two layers with experts are whole at once where they follow."""
    shape = {"dp": 8, "zero": 3, "global_batch_size": 8, "recompute": "full", "vocab": 1000}
    few, all_ = plan_of(**shape, dense_layers=14), plan_of(**shape, dense_layers=0)
    assert memory.by_rank(few)[0]["at work"][0] == pytest.approx(memory.by_rank(all_)[0]["at work"][0], rel=1e-6)


@pytest.mark.parametrize(
    ("pp", "vpp", "schedule", "has"),
    [
        (4, 1, "1f1b", (1, 4, 4)),
        (4, 2, "interleaved", (2, 4, 4)),
        (2, 2, "zbv", (5, 0, 8)),
        (8, 1, "1f1b", (0, 2, 2)),
        (1, 1, "", (13, 0, 13)),
    ],
)
def test_which_layers_of_a_rank_have_experts(pp: int, vpp: int, schedule: str, has: tuple[int, ...]) -> None:
    """Of 16 layers, 3 of them dense; on a V the first rank has the first and the last stage."""
    stages = (16 // pp // vpp,) * (pp * vpp)
    held = held_by(stages, pp, vpp, schedule, WithExperts(3))
    found = [held[f"layers_{rank}"] * held[f"mixture_{rank}"] for rank in ("first", "middle", "last")]
    assert found == pytest.approx(has)
    even = settle({**SHAPE, **EXPERTS, "pp": pp, "vpp": vpp, "schedule": schedule, "global_batch_size": 32}).case
    assert all(getattr(even, name) == held[name] for name in held if name.startswith("mixture"))


def test_a_search_knows_which_layers_have_experts() -> None:
    """Also where it gives the ends of a pipeline fewer layers."""
    raw = {**SHAPE, **EXPERTS, "gpu": "H100-SXM-80GB", "n_gpus": 16, "global_batch_size": 64, "pp": 4, "tp": 1}
    case = search({**raw, "vocab": 500_000}).case
    assert len(set(case.layers_first)) > 1
    assert case.layers_first[case.vpp == 1] * case.mixture_first[case.vpp == 1] == pytest.approx(
        case.layers_first[case.vpp == 1] - 3
    )


def test_terms_of_a_mixture_without_experts_are_refused() -> None:
    with pytest.raises(ModelError, match="without experts: leave them empty, or give experts"):
        settle({**SHAPE, "dense_layers": 2})
    with pytest.raises(ModelError, match="no layer of 16 has experts"):
        settle({**SHAPE, **EXPERTS, "dense_layers": 16})


def test_of_a_plan_the_case_without_changes_is_itself() -> None:
    """So that a search of dense models computes each layer once."""
    plan = plan_of(**dict.fromkeys(EXPERTS, 0), pp=4, global_batch_size=8)
    assert plan.of_rank("first") is plan and plan.of_largest_layer() is plan
    assert plan.of(replace(plan.case)) is not plan
