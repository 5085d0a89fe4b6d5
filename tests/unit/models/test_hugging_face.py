"""Models of transformers as strategies take them: the same numbers, whole, in stages and shared by tensor ranks."""

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from paralab.axes.check import check_split
from paralab.axes.pipeline.stages import cut_stage
from paralab.errors import ConfigError, LayoutError
from paralab.layout import Layout
from paralab.measure.routing import RoutingCounts
from paralab.models import SPECS, file_columns, folder_of, label_of
from paralab.models.hugging_face import CausalLMConfig, folder, proof, stages, thread_ranks
from paralab.models.hugging_face.config import new_model, quietly
from paralab.models.hugging_face.make import block_names, cannot, spec_of, tensor_plan
from paralab.models.hugging_face.smaller import n_layers, tiny, with_layers
from paralab.models.spec import Cut, ModelSpec, Style
from paralab.options.config import RunConfig
from paralab.parity import model_rules
from tests import hugging_face

SPLIT = [
    "llama",
    "qwen3",
    "gemma3",
    "gemma2",
    "mistral",
    "olmo",
    "olmo2",
    "gpt_neox",
    "deepseek_v3",
]  # by stages and by tensor ranks
STAGED = [*SPLIT, "gpt2", "stablelm"]
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
ROUNDED = 1e-6  # what they compute in fp32 beside weights in fp64


def made(name: str, tmp_path: Path, **changes: Any) -> ModelSpec[CausalLMConfig]:
    return spec_of(str(hugging_face.write(name, tmp_path / name, **changes)))


def batch(config: CausalLMConfig) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(config.vocab_size, (2, 25), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


DENSE = hugging_face.MODELS.keys() - {*hugging_face.MIXTURES, *hugging_face.UNBALANCED}


@pytest.mark.parametrize("name", sorted(DENSE))
def test_forward_and_names_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    spec = made(name, tmp_path)
    config = spec.config()
    ours = spec.built(config, seed=3)
    torch.manual_seed(3)
    theirs = AutoModelForCausalLM.from_config(copy.deepcopy(config.theirs)).train()
    tokens, targets = batch(config)
    logits = theirs(input_ids=tokens, use_cache=False).logits
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert torch.equal(ours(tokens), logits)
    assert torch.equal(ours(tokens, targets=targets), F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()))


def ours_and_theirs(spec: ModelSpec[CausalLMConfig]) -> tuple[nn.Module, Any]:
    """Return a mixture as strategies take it and as transformers has it, with the same values in fp64."""
    config = spec.config()
    ours = spec.built(config, seed=3).double()
    torch.manual_seed(3)
    theirs: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config.theirs)).train().double()
    theirs.set_experts_implementation("batched_mm")
    return ours, theirs


@pytest.mark.parametrize("name", hugging_face.MIXTURES)
def test_a_mixture_has_the_losses_of_transformers_for_each_sequence(tmp_path: Path, name: str) -> None:
    spec = made(name, tmp_path)
    config = spec.config()
    ours, theirs = ours_and_theirs(spec)
    tokens, targets = batch(config)
    alone = [theirs(input_ids=x, labels=x, output_router_logits=True, use_cache=False) for x in tokens[:, None]]
    logits = torch.cat([out.logits for out in alone])
    balance = torch.stack([out.aux_loss for out in alone]).mean() * config.theirs.router_aux_loss_coef
    entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert balance.item() > 0.5
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert torch.allclose(ours(tokens), logits, atol=ROUNDED)
    with RoutingCounts([ours]) as counts:
        ours_loss = ours(tokens, targets=targets)
    assert list(counts.loads.values()) == _loads(alone, config.theirs.num_experts_per_tok)
    assert torch.allclose(ours_loss, entropy + balance.double())
    assert torch.allclose(ours.eval()(tokens, targets=targets), entropy)  # in training alone
    ours_loss.backward()
    (entropy + balance).backward()
    for (at, p), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p.grad, other.grad, rtol=1e-5, atol=ROUNDED), at


def test_a_mixture_without_a_balance_loss_has_the_loss_of_transformers_alone(tmp_path: Path) -> None:
    spec = made("deepseek_v3", tmp_path)
    config = spec.config()
    ours, theirs = ours_and_theirs(spec)
    tokens, targets = batch(config)
    logits = theirs(input_ids=tokens, use_cache=False).logits
    with RoutingCounts([ours]) as counts:
        assert torch.allclose(ours(tokens, targets=targets), F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    assert [(sum(each), each[-1]) for each in counts.loads.values()] == [(2 * tokens.numel(), 0)] * 3
    assert any("no loss that keeps the loads of its experts even" in note for note in spec.notes(config))
    flops = spec.flops_of(config).per_sample
    more = made("deepseek_v3", tmp_path, num_experts_per_tok=4)
    met = 3 * 2 * (3 * 32 * 16)  # layers with experts, experts more, weights of each
    assert more.flops_of(more.config()).per_sample - flops == 64 * 6 * met


def _loads(outs: list[Any], top_k: int) -> list[list[int]]:
    """Return the choices of each expert, by layer, of outputs of transformers; none is without a place."""
    layers = [torch.cat(logits) for logits in zip(*(out.router_logits for out in outs), strict=True)]
    chosen = [logits.topk(top_k, dim=-1).indices.flatten() for logits in layers]
    return [[*x.bincount(minlength=logits.shape[-1]).tolist(), 0] for x, logits in zip(chosen, layers, strict=True)]


def test_stages_of_a_mixture_have_the_loss_of_the_whole_to_the_last_digits_of_fp64(tmp_path: Path) -> None:
    """The shares of tokens that experts get travel between stages."""
    spec = made("qwen3_moe", tmp_path)
    config = spec.config()
    whole = spec.built(config, seed=3).double()
    tokens, targets = batch(config)
    first, last = (
        cut_stage(copy.deepcopy(whole), spec=spec, config=config, layout=Layout.parse("pp2/naive"), stage=stage)
        for stage in range(2)
    )
    loss = last(*first(tokens), targets=targets)
    assert loss.item() == pytest.approx(whole(tokens, targets=targets).item(), rel=1e-13, abs=0)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_what_transformers_rounds_to_fp32_stays_in_fp64(tmp_path: Path, name: str) -> None:
    spec = made(name, tmp_path)
    norm: Any = spec.built(spec.config(), seed=3).double().base_model.norm
    x = torch.randn(4, 8, norm.weight.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_hand = x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt() * norm.weight
    assert torch.allclose(norm(x), by_hand, rtol=1e-14, atol=0)
    assert norm.float()(x.float()).dtype == torch.float32


def test_products_of_experts_are_those_of_transformers_in_every_form_that_it_has(tmp_path: Path) -> None:
    config = spec_of(str(_gpt_oss(tmp_path))).config()  # weights the other way round, biases, another gate
    torch.manual_seed(0)
    theirs: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config.theirs)).double().eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.2)
    ours = stages.wrapped(copy.deepcopy(theirs))
    theirs.config._experts_implementation = "batched_mm"
    tokens, _ = batch(config)
    assert torch.allclose(ours(tokens), theirs(input_ids=tokens, use_cache=False).logits, atol=ROUNDED)


def _gpt_oss(where: Path) -> Path:
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 272}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    transformers.GptOssConfig(**sizes, **heads, **dict.fromkeys(TOKENS)).save_pretrained(where)
    return where


@pytest.mark.parametrize("name", [*STAGED, *hugging_face.MIXTURES])
def test_stages_give_the_bits_of_the_whole(tmp_path: Path, name: str) -> None:
    spec = made(name, tmp_path)
    config = spec.config()
    whole, (tokens, targets) = spec.built(config, seed=0), batch(config)
    parts = [Cut(range(1), True, False), Cut(range(1, 3), False, False), Cut(range(3, 4), False, True)]
    passed: tuple[torch.Tensor, ...] = (tokens,)
    held = []
    for cut in parts:
        stage = stages.cut_stage(copy.deepcopy(whole), blocks=block_names(config), cut=cut)
        held += list(stage.state_dict())
        out = stage(*passed, targets=targets) if cut.last else stage(*passed)
        passed = out if isinstance(out, tuple) else (out,)
    # loads of a mixture are added up in another order
    assert torch.allclose(passed[0], whole(tokens, targets=targets), rtol=1e-6 if spec.experts else 0, atol=0)
    assert set(held) == set(whole.state_dict())  # under the names that they have in the whole model
    assert len(held) == len(whole.state_dict())
    assert cannot(config, "pp") == ""


@pytest.mark.parametrize("name", SPLIT)
def test_tensor_ranks_give_the_loss_of_the_whole(tmp_path: Path, name: str) -> None:
    spec = made(name, tmp_path)
    config = spec.config()
    whole, (tokens, targets) = spec.built(config, seed=0), batch(config)
    ranks = thread_ranks.ThreadRanks(2, tensor_plan(config))
    for loss in ranks.run(whole, lambda model: model(tokens, targets=targets)):
        torch.testing.assert_close(loss, whole(tokens, targets=targets))
    assert cannot(config, "tp") == ""


@pytest.mark.parametrize(
    ("name", "layout", "why"),
    [
        ("gpt2", "tp2", "no tensor plan .* --model gpt2 --init-from"),
        ("gpt2", "dp2.tp2.pp2/mb2", "no tensor plan"),
        ("stablelm", "tp2", "no tensor plan"),
        ("granite", "pp2/mb2", "computes something else: a loss of .* or tensor"),
        ("opt", "pp2/mb2", "computes something else: a loss of"),
        ("bloom", "pp2/mb2", "cut into stages it fails"),
        ("llama", "tp4", "tp=4 does not divide num_key_value_heads=2 .* use a tp of 1, 2"),
        ("llama", "tp2/sp", "no sequence-parallel form"),
        ("llama", "pp8/mb8", "8 pipeline stages for the 4 blocks"),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(tmp_path: Path, name: str, layout: str, why: str) -> None:
    spec = made(name, tmp_path)
    with pytest.raises(LayoutError, match=why) as error:
        check_split(Layout.parse(layout), spec=spec, config=spec.config())
    assert "\n" not in str(error.value)
    check_split(Layout.parse("dp4/zero3/shard2"), spec=spec, config=spec.config())


# --- the proof sees what is wrong


def test_positions_that_are_added_twice_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages._NoPositions, "forward", lambda self, positions: torch.linspace(0, 1, 32))
    assert "computes something else" in proof.stage_problem(made("gpt2", tmp_path).config(), lambda c: block_names(c))


def test_a_gradient_that_a_stage_loses_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = made("llama", tmp_path).config()
    cut_stage = stages.cut_stage

    def detached(model: nn.Module, **options: Any) -> nn.Module:
        stage = cut_stage(model, **options)
        if not options["cut"].last:
            forward = stage.forward
            stage.forward = lambda *inputs: forward(*inputs).detach()
        return stage

    monkeypatch.setattr(proof, "cut_stage", detached)
    assert "another gradient of model." in proof.stage_problem(config, lambda c: block_names(c))


def test_an_embedding_stays_whole_where_their_plan_splits_it_and_one_within_a_block_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made("llama", tmp_path).config()
    today = tensor_plan(config)
    plan = dict(type(config.theirs).base_model_tp_plan, embed_tokens="embedding_rowwise")  # transformers from 5.24 on
    monkeypatch.setattr(type(config.theirs), "base_model_tp_plan", plan)
    assert tensor_plan(config) == today
    monkeypatch.setitem(plan, "layers.*.mlp", "embedding_rowwise")
    assert "model.layers.*.mlp as 'embedding_rowwise', which is not done here" in cannot(config, "tp")


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("qwen3", {"*.q_norm": None}, "misses that model.layers.0.self_attn.q_norm is whole"),
        ("olmo2", {"*.q_proj": "column", "*.k_proj": "column", "*.v_proj": "column", "*.o_proj": "row"}, "it fails"),
        ("llama", {"*.down_proj": "row_of_whole"}, "it fails"),
    ],
)
def test_a_wrong_tensor_plan_is_seen(tmp_path: Path, name: str, changes: dict[str, Style | None], problem: str) -> None:
    config = made(name, tmp_path).config()

    def plan(config: CausalLMConfig) -> dict[str, Style]:
        right = dict(tensor_plan(config))
        for end, style in changes.items():
            pattern = next(pattern for pattern in right if pattern.endswith(end[1:]))
            del right[pattern]
            if style:
                right[pattern] = style
        return right

    assert problem in proof.tensor_problem(config, plan)


# --- configurations


def test_a_tiny_model_keeps_what_makes_the_architecture(tmp_path: Path) -> None:
    kinds = [*["sliding_attention"] * 5, "full_attention"] * 2
    sizes = {"hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 16, "vocab_size": 60_000}
    spec = made("gemma3", tmp_path, layer_types=kinds, pad_token_id=0, num_key_value_heads=4, **sizes)
    assert list(spec.sizes) == ["full", "tiny"]
    full, small = spec.config(), spec.config(spec.tiny_size)
    assert (full.theirs.hidden_size, full.seq_len, full.tokenizer) == (256, 64, "gpt2")
    theirs = small.theirs
    assert (theirs.hidden_size, theirs.num_hidden_layers, small.vocab_size, small.tokenizer) == (32, 4, 288, "bytes")
    assert (theirs.num_attention_heads, theirs.num_key_value_heads, theirs.pad_token_id) == (4, 2, None)
    assert theirs.layer_types == ["sliding_attention", "full_attention"] * 2
    assert theirs.sliding_window < small.seq_len
    assert tiny(small) == small
    fewer = spec.with_blocks(full, 7) if spec.with_blocks else full
    assert (n_layers(fewer), fewer.theirs.layer_types) == (7, kinds[:7])
    assert with_layers(full, 12) == full


def test_a_tiny_model_keeps_what_single_layers_have_of_their_own_and_what_json_has_no_word_for(tmp_path: Path) -> None:
    import transformers

    transformers.Gemma4TextConfig().save_pretrained(tmp_path / "gemma4")  # another head_dim in every sixth layer
    spec = spec_of(str(tmp_path / "gemma4"))
    small = json.loads(spec.config("tiny").values)
    assert small["per_layer_config"] == {"1": {"head_dim": 8}, "3": {"head_dim": 8}}
    assert sum(p.numel() for p in spec.on_meta(spec.config("tiny")).parameters()) < 100_000
    transformers.FalconH1Config().save_pretrained(tmp_path / "falcon")
    assert folder.read(str(tmp_path / "falcon")).theirs.time_step_limit[1] == float("inf")


def test_what_has_no_small_model_that_runs_is_split_along_no_axis_that_asks_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made("llama", tmp_path, hidden_size=48).config()
    monkeypatch.setattr(proof, "_MOST_WEIGHTS", 10_000)
    assert "weights, too many to try it; use ddp" in cannot(config, "pp")
    monkeypatch.setattr(proof, "tiny", lambda config: config)  # whose vocabulary no token has
    config = replace(made("llama", tmp_path, hidden_size=56).config(), seq_len=0)
    monkeypatch.setattr(proof, "_MOST_WEIGHTS", 10_000_000)
    assert "a small model of its kind fails" in cannot(config, "cp")


def test_a_model_that_needs_each_kind_of_layer_is_checked_with_all_of_them(tmp_path: Path) -> None:
    import transformers

    transformers.OlmoHybridConfig().save_pretrained(tmp_path)
    spec = spec_of(str(tmp_path))
    small = spec.config("tiny")
    assert spec.with_few_blocks(small) is small  # transformers refuses a model of its first two layers
    assert model_rules.broken(spec, small) == []


def test_flops_count_the_matrices_of_blocks_and_output_layer(tmp_path: Path) -> None:
    for name in ("llama", "qwen3"):  # an output layer of its own, and a tied one
        spec = made(name, tmp_path)
        flops = spec.flops_of(spec.config())
        attention, mlp, head = 32 * (32 + 16 + 16 + 32), 3 * 32 * 64, 32 * 272
        assert flops.formula == "6N+12LHS"
        assert flops.per_sample == 64 * (6 * (4 * (attention + mlp) + head) + 12 * 4 * 32 * 64)


def test_dropout_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    spec = made("gpt2", tmp_path, attn_pdrop=0.2)
    config = spec.config()
    assert config.dropout == 0.2
    assert "dropout of its configuration is not used" in spec.notes(config)[0]
    assert "attn_pdrop=0.2" in spec.notes(config)[0]
    model = new_model(config)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.0}
    assert json.loads(config.values)["attn_pdrop"] == 0.2  # as it was read
    without = made("llama", tmp_path)
    assert not any("dropout" in note for note in without.notes(without.config()))


@pytest.mark.parametrize("name", STAGED)
def test_the_rules_of_models_are_kept(tmp_path: Path, name: str) -> None:
    spec = made(name, tmp_path)
    assert model_rules.broken(spec, spec.config("tiny")) == []


def test_a_folder_is_named_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hugging_face.write("llama", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    name = RunConfig(model="hf:mine").model
    assert name == f"hf:{folder}"
    assert SPECS[name] is SPECS[name] and SPECS[name].name == "hf:mine" and name not in list(SPECS)
    assert (label_of(name), folder_of(name), label_of("hf:org/model")) == ("hf:mine", "mine", "hf:model")
    assert RunConfig(model="hf:org/model").model == "hf:org/model"
    said = file_columns(name)
    assert said["model_file"] == "hf:mine" and len(said["model_sha256"] or "") == 64
    hugging_face.write("llama", tmp_path / "other", rms_norm_eps=1e-3)
    assert file_columns(f"hf:{tmp_path / 'other'}")["model_sha256"] != said["model_sha256"]


def test_a_sequence_is_as_long_as_the_model_allows(tmp_path: Path) -> None:
    config = made("llama", tmp_path, max_position_embeddings=4096).config()
    assert (config.seq_len, config.longest) == (1024, 4096)
    assert replace(config, seq_len=4096).seq_len == 4096
    with pytest.raises(ConfigError, match="--seq-len 4097: LlamaForCausalLM has 4096 positions"):
        replace(config, seq_len=4097)
    assert made("bloom", tmp_path).config().longest is None


# --- what is refused


def _change(**values: Any) -> Any:
    return lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda file: file.unlink(), "has no config.json: give a folder"),
        (lambda file: file.write_text('{"model_type": "llama", '), "config.json cannot be read"),
        (lambda file: file.write_text("[1]"), "it holds a list"),
        (_change(model_type="lama"), r"model_type 'lama' is unknown to transformers \(did you mean llama"),
        (_change(model_type=None), "model_type None is unknown"),
        (_change(hidden_size="wide"), "config.json is not that of a llama"),
        (_change(hidden_act="none such"), "config.json is not that of a llama .*none such"),
        (_change(rope_scaling={"rope_type": "none such"}), "config.json is not that of a llama .*none such"),
        (_change(num_attention_heads=0), "config.json is not that of a llama"),
        (_change(num_key_value_heads=3), "num_key_value_heads is 3, which does not divide the 4"),
        (_change(vocab_size=0), "vocab_size is 0, 1 or more are needed"),
        (_change(num_hidden_layers=-1), "num_hidden_layers is -1, 1 or more are needed"),
        (_change(auto_map={"AutoModel": "x.Y"}), "brings Python of its own .* take auto_map out"),
        (_change(auto_map={"AutoModel": "x.Y"}, model_type="mine"), "brings Python .* that transformers has itself"),
        (_change(architectures=["LlamaForSequenceClassification"]), "is a LlamaForSequenceClassification"),
        (_change(quantization_config={"quant_method": "gptq"}), "is quantized"),
        (lambda file: file.write_text('{"model_type": "bert"}'), "is a bert, an encoder: give a decoder-only"),
        (lambda file: file.write_text('{"model_type": "t5"}'), "is a t5, an encoder with a decoder"),
        (lambda file: file.write_text('{"model_type": "vit"}'), "is a vit, which is not a language model"),
        (
            lambda file: file.write_text('{"model_type": "deepseek_v2", "num_hidden_layers": 2}'),
            "a deepseek_v2 with experts .*, and its configuration has no num_experts_per_tok or .*: give its module",
        ),
        (
            lambda file: file.write_text('{"model_type": "dbrx"}'),
            "transformers .* cannot make its own dbrx .*: give another model, or install another version",
        ),
        (
            lambda file: file.write_text('{"model_type": "llama4"}'),
            "is a llama4, of which a llama4_text is the language model: give a folder whose config.json is that part",
        ),
        (
            lambda file: file.write_text('{"model_type": "llama4_text", "num_hidden_layers": 1}'),
            "is a llama4_text with experts .model.* is a Llama4TextExperts., and .* way of their own",
        ),
    ],
)
def test_bad_folders_are_refused_in_a_line(tmp_path: Path, change: Any, problem: str) -> None:
    where = hugging_face.write("llama", tmp_path / "llama")
    change(where / "config.json")
    with pytest.raises(ConfigError, match=problem) as error:
        folder.read(str(where))
    assert "\n" not in str(error.value) and str(where) in str(error.value)


def test_a_mixture_all_of_whose_layers_are_dense_is_taken(tmp_path: Path) -> None:
    where = hugging_face.write("llama", tmp_path / "llama")
    _change(model_type="qwen3_moe", architectures=None, mlp_only_layers=[0, 1, 2, 3])(where / "config.json")
    assert folder.read(str(where)).architecture == "Qwen3MoeForCausalLM"


def test_a_name_of_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name: str, **options: Any) -> str:
        raise LocalEntryNotFoundError(f"no {name} in the cache\nand no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConfigError, match="`hf download some/model --local-dir model`, and give hf:model") as error:
        folder.read("some/model")
    assert "\n" not in str(error.value)
    for path in ("/some/model", "./model", "models/some/model", "~/model"):  # no names of the hub
        with pytest.raises(ConfigError, match=r"there is no folder .*: give one that save_pretrained wrote"):
            folder.read(path)


def test_gguf_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="takes the package gguf: type `pip install gguf`"):
        folder.read(str(tmp_path / "model.gguf"))


# whose sequence ranks share
SHARED = ["llama", "qwen3", "olmo", "olmo2", "gpt_neox", "gpt2", "granite", "opt", "stablelm"]


@pytest.mark.parametrize("name", hugging_face.MODELS)
def test_a_sequence_is_shared_where_ranks_then_compute_the_same(tmp_path: Path, name: str) -> None:
    spec = made(name, tmp_path)
    if name in SHARED + hugging_face.MIXTURES + hugging_face.UNBALANCED:
        check_split(Layout.parse("cp2"), spec=spec, config=spec.config())
        return
    why = "something else: a loss of" if name == "bloom" else "its attention has sliding_window"
    with pytest.raises(LayoutError, match=f"{why}.*; use a layout without cp"):
        check_split(Layout.parse("cp2"), spec=spec, config=spec.config())


def test_a_model_that_counts_positions_from_zero_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "own_positions", lambda model, x: torch.arange(x.shape[1])[None])
    with pytest.raises(LayoutError, match="with a sequence that ranks share it computes something else"):
        check_split(Layout.parse("cp2"), spec=(spec := made("llama", tmp_path, rope_theta=9.0)), config=spec.config())


def test_what_transformers_imports_logs_nothing_and_is_heard_again_afterwards(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with quietly():
        logging.getLogger("DeepSpeed").warning("Setting accelerator to CPU")
    assert not caplog.records
    logging.getLogger("DeepSpeed").warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]
