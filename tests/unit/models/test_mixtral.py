"""Mixtral against transformers' Mixtral, its routing against plain loops, and its numbers against published ones."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from paralab.errors import ConfigError, DataError
from paralab.models.mixtral import SIZES, SPEC, Mixtral, MixtralConfig, parameters, size_of
from paralab.models.mixtral_hf import config_from, take, to_transformers
from paralab.models.routing import Router
from paralab.weights.hugging_face import from_hugging_face, to_hugging_face

# more queries than keys, experts whose width the key-value heads do not divide (their kernel needs multiples of 4)
CONFIG = MixtralConfig(
    n_layers=2, hidden=48, n_heads=6, n_kv_heads=3, ffn=28, seq_len=12, vocab_size=101, n_experts=5, top_k=2
)
VARIANTS = {
    "plain": CONFIG,
    "three of a token": replace(CONFIG, top_k=3, ffn=24, rope_theta=100.0),
    "tied": replace(CONFIG, tied=True, norm_eps=1e-6),
}
variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def initialized(config: MixtralConfig, *, scale: float = 0.3) -> Mixtral:
    model = Mixtral(config)
    for i, (name, parameter) in enumerate(model.named_parameters()):
        SPEC.init(config, name, parameter.data, torch.Generator().manual_seed(i))
        parameter.data += scale * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    return model


def tokens(config: MixtralConfig, rows: int = 2) -> Tensor:
    return torch.randint(config.vocab_size, (rows, config.seq_len), generator=torch.Generator().manual_seed(0))


@variants
def test_a_checkpoint_of_transformers_gives_its_logits_loss_and_gradients(
    config: MixtralConfig, tmp_path: Path
) -> None:
    theirs, words = to_transformers(config, initialized(config).state_dict()), tokens(config)
    theirs.save_pretrained(tmp_path)
    assert any("block_sparse_moe.experts.4.w3" in name for name in load_file(tmp_path / "model.safetensors"))
    found, state = from_hugging_face(tmp_path)
    assert found == config
    ours = Mixtral(config).eval()  # where the loss is the cross entropy alone, as theirs is
    ours.load_state_dict(state)
    want = theirs(words, labels=words)
    assert want.logits.std() > 0.5
    assert_close(ours(words), want.logits, rtol=1e-5, atol=1e-5)
    loss = ours(words[:, :-1], targets=words[:, 1:])
    assert_close(loss, want.loss, rtol=1e-5, atol=0)
    loss.backward()
    want.loss.backward()
    gradients = take({name: parameter.grad for name, parameter in theirs.named_parameters()}, config)
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - gradients[name]).norm() < 1e-5 * gradients[name].norm(), name


@variants
def test_transformers_reads_what_is_saved_and_gives_back_the_same_bits(config: MixtralConfig, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ours, words = initialized(config), tokens(config)
    to_hugging_face(tmp_path, ours.state_dict(), spec=SPEC, config=config)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(theirs(words).logits, ours(words), rtol=1e-5, atol=1e-5)
    back, rows = take(theirs.state_dict(), config_from(theirs.config)), slice(config.vocab_size)
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name][rows], value[rows]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sliding_window": 4}, "sliding_window=4, this Mixtral has sliding_window=None"),
        ({"router_jitter_noise": 0.1}, "router_jitter_noise=0.1"),
        ({"head_dim": 16}, "head_dim=16, this Mixtral has hidden_size / num_attention_heads, 8"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "has rope_theta alone"),
        ({"num_local_experts": 6}, "it lacks layers.0.block_sparse_moe.experts.5.w1.weight"),
    ],
)
def test_a_variant_that_computes_something_else_is_refused(values: dict, said: str, tmp_path: Path) -> None:
    theirs = to_transformers(CONFIG, Mixtral(CONFIG).state_dict())
    for key, value in values.items():
        setattr(theirs.config, key, value)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=said) as caught:
        from_hugging_face(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_shared_expert_has_no_place_in_transformers() -> None:
    config = replace(CONFIG, shared_ffn=16)
    with pytest.raises(ConfigError, match="use --format safetensors"):
        to_transformers(config, Mixtral(config).state_dict())


def test_a_router_of_half_a_sequence_counts_the_choices_of_the_whole() -> None:
    """Loads and places are those of all positions; the losses of both halves have the whole one for their mean."""
    config = replace(CONFIG, balance=1.0, z=0.0, capacity=0.6)
    mixture: Any = initialized(config).blocks["0"].mixture
    router = mixture.router.train()
    x = torch.randn(2, config.seq_len, config.hidden, generator=torch.Generator().manual_seed(1))
    whole = router(x)
    chosen = router.score(x).topk(config.top_k, dim=-1).indices
    halves = []
    for part in (slice(0, 6), slice(6, 12)):
        router.share_sequence(lambda every, dim, part=part: every[:, part], 2)
        router.whole.over = lambda mine, part=part: chosen if torch.equal(mine, chosen[:, part]) else mine
        halves.append(router(x[:, part]))
    assert torch.equal(torch.cat([half.experts for half in halves], dim=1), whole.experts)
    assert (whole.experts == config.n_experts).any()  # some lose their places
    assert_close((halves[0].loss + halves[1].loss) / 2, whole.loss)


@pytest.mark.parametrize("changes", [{}, {"top_k": 1}, {"shared_ffn": 20}, {"capacity": 0.6, "top_k": 3}])
def test_a_mixture_is_a_loop_over_tokens_and_their_experts(changes: dict) -> None:
    config = replace(CONFIG, **changes)
    mixture: Any = initialized(config).blocks["0"].mixture
    x = torch.randn(2, 12, 48, generator=torch.Generator().manual_seed(1))
    got, _ = mixture(x)
    experts, want = mixture.experts, torch.zeros_like(x)
    taken: Counter[tuple[int, int]] = Counter()
    for sample in range(2):
        for position in range(12):
            token = x[sample, position]
            weights, chosen = mixture.router.score(token).softmax(-1).topk(config.top_k)
            for weight, expert in zip(weights / weights.sum(), chosen.tolist(), strict=True):
                if config.capacity is not None and taken[sample, expert] == 5:  # of ceil(0.6 x 3 x 12 / 5) places
                    continue
                taken[sample, expert] += 1
                gate, up = (experts.up[expert] @ token).unflatten(0, (-1, 2, experts.part)).unbind(1)
                product = (torch.nn.functional.silu(gate) * up).flatten()
                want[sample, position] += weight * (experts.down[expert] @ product)
            if config.shared_ffn:
                want[sample, position] += mixture.shared(token)
    assert_close(got, want)
    assert config.capacity is None or 0 < sum(taken.values()) < 2 * 12 * 3


def test_the_losses_of_routers_are_those_of_their_papers_for_each_sequence() -> None:
    config = replace(CONFIG, balance=1.0, z=0.0)
    torch.manual_seed(0)
    x = torch.randn(2, 12, 48)

    def routed(**changes: Any) -> tuple[Router, Tensor]:
        torch.manual_seed(1)
        router = Router(replace(config, **changes))
        return router, router(x).loss

    router, balance = routed()
    logits = router.score(x)
    for sample in range(2):
        chosen = logits[sample].topk(2).indices.flatten().tolist()
        loads = torch.tensor([chosen.count(expert) for expert in range(5)]) * 5 / (2 * 12)
        assert_close(balance[sample], (loads * logits[sample].softmax(-1).mean(0)).sum())
    assert_close(routed(balance=0.0, z=1.0)[1], logits.exp().sum(-1).log().square().mean(-1))
    even = Router(replace(config, n_experts=4, top_k=4))
    torch.nn.init.zeros_(even.score.weight)
    assert_close(even(x).loss, torch.ones(2))


def test_the_losses_of_routers_are_added_in_training_alone() -> None:
    words, losses = tokens(CONFIG), list[Tensor]()
    model = initialized(CONFIG)
    for block in model.blocks.values():
        block.mixture.router.register_forward_hook(lambda module, inputs, routing: losses.append(routing.loss))
    training = model(words, targets=words)
    routed = torch.stack(losses).sum(0).mean()
    plain = model.eval()(words, targets=words)
    assert_close(training, plain + routed)
    assert routed > 0.02  # of two layers
    limited = initialized(replace(CONFIG, capacity=0.5))
    assert not torch.isclose(limited(words, targets=words), training)
    assert_close(limited.eval()(words, targets=words), plain)


def test_capacity_does_not_let_a_token_see_those_after_it() -> None:
    model, words = initialized(replace(CONFIG, capacity=0.5)), tokens(CONFIG)
    changed = words.clone()
    changed[:, 7] = (changed[:, 7] + 1) % CONFIG.vocab_size
    with torch.no_grad():
        before, after = model(words), model(changed)
    assert_close(before[:, :7], after[:, :7])
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all(-1).any()


def test_parameter_counts_are_the_published_ones() -> None:
    config = SIZES["8x7b"]  # 47B parameters, of which a token meets 13B: Jiang et al. 2024, section 1
    assert sum(p.numel() for p in SPEC.on_meta(config).parameters()) == parameters(config) == 46_702_792_704
    assert parameters(config, active=True) == 12_879_925_248


@pytest.mark.parametrize("config", [SIZES["tiny"], replace(CONFIG, shared_ffn=20)], ids=["tiny", "shared"])
def test_flops_equal_the_counted_ones(config: MixtralConfig) -> None:
    model = SPEC.on_meta(config)
    (words,), _ = SPEC.example(config, 2)
    with FlopCounterMode(display=False) as counter:
        model(words.to("meta")).sum().backward()
    assert counter.get_total_flops() == 2 * SPEC.flops(config).per_sample


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("2x64x4/2e4/1", MixtralConfig(2, 64, 4, 2, ffn=224, seq_len=8192, n_experts=4, top_k=1)),
        (
            "2x64x4/4e8/2f96h32c1.25b0.1z0v257t10000n1e-06tied",
            MixtralConfig(
                2, 64, 4, 4, 96, vocab_size=257, rope_theta=1e4, norm_eps=1e-6, tied=True, tokenizer="bytes",
                shared_ffn=32, capacity=1.25, balance=0.1, z=0.0,
            ),
        ),
    ],
)  # fmt: skip
def test_a_size_may_be_written_in_numbers(text: str, config: MixtralConfig) -> None:
    assert SPEC.config(text.upper()) == config
    assert size_of(config) == text


def test_presets_have_one_name_and_numbers_that_do_not_fit_are_refused() -> None:
    assert all(size_of(replace(config, seq_len=7)) == name for name, config in SIZES.items())
    with pytest.raises(ValueError, match="top_k=9 is not between 1 and n_experts=8"):
        SPEC.config("2x64x4e8/9")
    with pytest.raises(ValueError, match=r"capacity=0\.0 leaves no place"):
        SPEC.config("2x64x4e8/2c0")
