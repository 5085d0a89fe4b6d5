"""ResNet against transformers' own, and the batch norm over ranks against nn.BatchNorm2d over the whole batch."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from paralab.errors import ConfigError
from paralab.models.norms import BatchNorm2d, SyncBatchNorm2d, _Normalize
from paralab.models.resnet import SIZES, SPEC, BasicBlock, ResNet, ResNetConfig, block_shapes, init
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from tests.unit.thread_ranks import ThreadRanks


def initialized(config: ResNetConfig) -> ResNet:
    model = ResNet(config)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        init(config, name, tensor.detach(), generator)
    return model


def image_batch(config: ResNetConfig, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    (images,), labels = SPEC.example(config, size)
    return torch.randn(images.shape, generator=generator), torch.randint(10, labels.shape, generator=generator)


# -- the batch norm over ranks


def norm_pair(ranks: ThreadRanks, channels: int) -> tuple[nn.BatchNorm2d, list[SyncBatchNorm2d]]:
    reference = nn.BatchNorm2d(channels)
    generator = torch.Generator().manual_seed(2)
    for tensor in (reference.weight, reference.bias, reference.running_mean, reference.running_var):
        tensor.data = torch.rand(channels, generator=generator) + 0.5
    norms = [SyncBatchNorm2d(channels) for _ in range(ranks.size)]
    for norm in norms:
        norm.load_state_dict(reference.state_dict())
        norm.ranks, norm.all_reduce = ranks.size, ranks.all_reduce
    return reference, norms


class _LargestSum(TorchDispatchMode):
    """Finds the most bytes that tensors made inside have at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most_bytes, self.live = 0, dict[int, weakref.ref]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and isinstance(result, Tensor):
            self.live[id(result)] = weakref.ref(result)
        there = (tensor for ref in self.live.values() if (tensor := ref()) is not None)
        self.most_bytes = max(self.most_bytes, sum(tensor.nbytes for tensor in there))
        return result


def test_backward_of_the_norm_over_ranks_has_two_copies_in_fp32_at_once() -> None:
    x = torch.randn(8, 16, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    x_hat, *_ = _Normalize.apply(x, 1e-5, lambda sums, _: sums)
    grad = torch.randn_like(x)
    with _LargestSum() as seen:
        x_hat.backward(grad)
    assert (
        x.grad is not None and 4 * x.numel() * 2 <= seen.most_bytes < 4 * x.numel() * 2.7
    )  # and the result in 16 bits


@pytest.mark.parametrize("sizes", [(4, 4), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_sync_batch_norm_equals_one_process(sizes: tuple[int, ...], offset: float) -> None:
    ranks = ThreadRanks(len(sizes))
    reference, norms = norm_pair(ranks, channels=5)
    generator = torch.Generator().manual_seed(3)
    # The ranks' means differ by more than a standard deviation, and by far less than the mean itself.
    whole = torch.randn(sum(sizes), 5, 6, 7, generator=generator) + offset
    whole[: sizes[0]] += 2
    grad = torch.randn(whole.shape, generator=generator)

    exact = reference.double()
    x = whole.double().requires_grad_()
    expected = exact(x)
    expected.backward(grad.double())

    parts = [part.clone().requires_grad_() for part in whole.split(sizes)]
    grads = grad.split(sizes)
    outputs = ranks.run(lambda rank: norms[rank](parts[rank]))
    assert ranks.calls == 1
    ranks.run(lambda rank: outputs[rank].backward(grads[rank]))
    assert ranks.calls == 2

    # A mean of 3000 is rounded by 1e-4 in fp32; statistics that cancel would be wrong by 0.5 there.
    near: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5 if offset == 0 else 1e-3, "check_dtype": False}
    assert_close(torch.cat(outputs), expected, **near)
    assert_close(torch.cat([part.grad for part in parts]), x.grad, **near)
    for name in ("weight", "bias"):
        total = sum(getattr(norm, name).grad for norm in norms)
        assert_close(total, getattr(exact, name).grad, **near | {"atol": 10 * near["atol"]})  # sums of 250 terms
    for norm in norms:
        assert_close(norm.running_mean, exact.running_mean, **near)
        assert_close(norm.running_var, exact.running_var, **near)
        assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("kind", [BatchNorm2d, SyncBatchNorm2d])
@pytest.mark.parametrize("tracks", [True, False])
def test_alone_it_is_the_batch_norm_of_torch(kind: type[BatchNorm2d], tracks: bool) -> None:
    x = torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    ours, theirs = kind(5), nn.BatchNorm2d(5)
    ours.track_running_stats = theirs.track_running_stats = tracks
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    assert ours.num_batches_tracked == int(tracks)


def test_recomputed_forward_tracks_nothing_and_evaluation_reduces_nothing() -> None:
    ranks = ThreadRanks(2)
    reference, norms = norm_pair(ranks, channels=5)
    x = torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    first = ranks.run(lambda rank: norms[rank](x[2 * rank : 2 * rank + 2]))
    tracked = norms[0].running_mean.clone()
    for norm in norms:
        norm.track_running_stats = False
    again = ranks.run(lambda rank: norms[rank](x[2 * rank : 2 * rank + 2]))
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert torch.equal(norms[0].running_mean, tracked) and norms[0].num_batches_tracked == 1

    calls = ranks.calls
    norms[0].load_state_dict(before)
    assert torch.equal(norms[0].eval()(x), reference.eval()(x))
    assert ranks.calls == calls


def test_bf16_weights_keep_fp32_statistics() -> None:
    ranks = ThreadRanks(2)
    reference, norms = norm_pair(ranks, channels=5)
    for norm in norms:
        norm.weight.data, norm.bias.data = norm.weight.data.bfloat16(), norm.bias.data.bfloat16()
    x = torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    parts = [part.clone().requires_grad_() for part in x.split(2)]
    outputs = ranks.run(lambda rank: norms[rank](parts[rank]))
    ranks.run(lambda rank: outputs[rank].float().square().sum().backward())
    assert outputs[0].dtype == parts[0].grad.dtype == torch.bfloat16
    assert_close(torch.cat(outputs), reference(x), rtol=2e-2, atol=2e-2)  # two roundings to 8 bits
    assert norms[0].running_var.dtype == torch.float32
    assert norms[0].eval()(parts[0]).dtype == torch.bfloat16


def test_two_ranks_train_as_one() -> None:
    """Averaged over ranks, the gradients of local mean losses are those of the mean loss over the whole batch."""
    config = replace(SIZES["tiny"], depths=(1, 1), image_size=14)
    images, labels = image_batch(config, 8)
    reference = initialized(config).double()
    reference(images.double(), targets=labels).backward()
    ranks = ThreadRanks(2)
    models = [initialized(config).double() for _ in range(2)]
    for module in (module for model in models for module in model.modules()):
        if isinstance(module, SyncBatchNorm2d):
            module.ranks, module.all_reduce = 2, ranks.all_reduce

    def train(rank: int) -> None:
        rows = slice(4 * rank, 4 * rank + 4)
        models[rank](images[rows].double(), targets=labels[rows]).backward()

    ranks.run(train)
    for expected, *local in zip(reference.parameters(), *(model.parameters() for model in models), strict=True):
        assert_close((local[0].grad + local[1].grad) / 2, expected.grad, rtol=1e-9, atol=1e-11)
    for name, buffer in reference.named_buffers():
        assert_close(models[1].get_buffer(name), buffer, rtol=1e-9, atol=0, msg=name)


# -- the network


@pytest.mark.parametrize("bottleneck", [False, True])
def test_logits_equal_transformers(bottleneck: bool) -> None:
    from transformers import ResNetConfig as TheirConfig
    from transformers import ResNetForImageClassification

    config = replace(SIZES["50" if bottleneck else "18"], depths=(2, 2, 1, 1), widths=(4, 8, 8, 16), image_size=64)
    expansion = 4 if bottleneck else 1
    theirs = ResNetForImageClassification(
        TheirConfig(
            embedding_size=4,
            hidden_sizes=[expansion * width for width in config.widths],
            depths=list(config.depths),
            layer_type="bottleneck" if bottleneck else "basic",
            num_labels=config.n_classes,
        )
    ).eval()
    ours = initialized(config).eval()
    state, n_layers = {}, 3 if bottleneck else 2
    places = {"stem.": "resnet.embedder.embedder."}
    flat = [(i, j) for i, depth in enumerate(config.depths) for j in range(depth)]
    for block, (i, j) in enumerate(flat):
        layer = f"resnet.encoder.stages.{i}.layers.{j}."
        places[f"blocks.{block}.shortcut."] = layer + "shortcut."
        places |= {f"blocks.{block}.#{k + 1}.": f"{layer}layer.{k}." for k in range(n_layers)}
    for name, value in ours.state_dict().items():
        prefix, part, tensor = name.rsplit(".", 2)
        key = f"{prefix}.#{part[-1]}." if part[-1].isdigit() else prefix + "."
        kind = "convolution." if part.startswith("conv") else "normalization."
        state["classifier.1." + tensor if prefix == "head" else places[key] + kind + tensor] = value
    theirs.load_state_dict(state)
    images, _ = image_batch(config, 2)
    assert_close(ours(images), theirs(images).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size, millions", [("18", 11.69), ("34", 21.80), ("50", 25.56)])
def test_parameter_counts_are_the_published_ones(size: str, millions: float) -> None:
    # torchvision's table of pre-trained weights
    with torch.device("meta"):
        model = ResNet(SIZES[size])
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("size", SIZES)
def test_flops_equal_the_counted_ones(size: str) -> None:
    config = SIZES[size]
    with torch.device("meta"):
        model = ResNet(config)
        (images,), labels = SPEC.example(config, 2)
    with FlopCounterMode(display=False) as counter:
        model(images.requires_grad_(), targets=labels).backward()
    assert counter.get_total_flops() == 2 * SPEC.flops(config).per_sample


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_takes_effect_and_changes_nothing(channels: int) -> None:
    config = replace(SIZES["tiny"], channels=channels)
    images, labels = image_batch(config, 4)
    plain, other = initialized(config), initialized(replace(config, channels_last=True))
    formats: list[Any] = []
    for block in other.blocks.values():
        block.register_forward_hook(
            lambda _block, args, output: formats.extend(
                tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (*args, output)
            )
        )
    loss = other(images, targets=labels)
    assert len(formats) == 16 and all(formats)
    assert_close(loss, plain(images, targets=labels), rtol=1e-6, atol=0)


@pytest.mark.parametrize("wrong", [{"norm": "layer"}, {"depths": (1,)}, {"norm": "group", "groups": 5}], ids=str)
def test_config_refuses(wrong: dict) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))[:5].strip("(,)")):
        replace(SIZES["tiny"], **wrong)


def test_zero_bubble_weight_step_reduces_nothing() -> None:
    ranks = ThreadRanks(1)
    block = initialized(SIZES["tiny"]).blocks["0"]
    for norm in (block.norm1, block.norm2):
        norm.ranks, norm.all_reduce = 2, ranks.all_reduce
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def step(_rank: int) -> list[int]:
        outputs, calls = [block(x)], [ranks.calls]
        _, groups = stage_backward_input(outputs, [torch.ones_like(outputs[0])], [x], block.parameters())
        calls.append(ranks.calls)
        stage_backward_weight(block.parameters(), groups)
        return [*calls, ranks.calls]

    assert ranks.run(step) == [[2, 4, 4]]  # two norms: forward, input, weights


def test_norm_none_is_no_norm_and_not_the_default() -> None:
    run = RunConfig.from_dict({"model": "resnet", "size": "tiny", "norm": "none", "strategy": "single"})
    assert run.norm == "none" and RunConfig.from_dict(run.to_dict()).norm == "none"
    without, usual = resolve(run), resolve(RunConfig(model="resnet", size="tiny", strategy="single"))
    names = dict(without.new_model().named_parameters())
    assert not any("norm" in name for name in names)
    norms = sum(p.numel() for name, p in usual.new_model().named_parameters() if "norm" in name)
    assert norms > 0 and without.n_parameters == usual.n_parameters - norms
    assert RunConfig(model="resnet", data="none").data is None, "elsewhere none leaves an option open"


@pytest.mark.parametrize("size", ["tiny", "50"])
def test_without_residual_connections_a_block_is_its_convolutions(size: str) -> None:
    plain, usual = replace(SIZES[size], residual="off"), SIZES[size]
    with torch.device("meta"):
        names = [{name for name, _ in ResNet(config).named_parameters()} for config in (plain, usual)]
    assert names[0] < names[1] and all("shortcut" in name for name in names[1] - names[0])
    assert SPEC.flops_of(plain).per_sample < SPEC.flops_of(usual).per_sample


def test_a_plain_block_hides_its_input_behind_zero_weights() -> None:
    x = torch.rand(2, 8, 6, 6)
    shape = block_shapes(SIZES["tiny"])[0]
    shape = shape._replace(channels_in=8, width=8, stride=1)
    for residual in ("on", "off"):
        block = BasicBlock(replace(SIZES["tiny"], residual=residual, norm="none"), shape)
        nn.init.zeros_(block.conv2.weight)
        assert torch.equal(block(x), x if residual == "on" else torch.zeros_like(x))


def test_residual_off_is_read_from_flags_and_yaml_and_refused_elsewhere() -> None:
    run = RunConfig.from_dict({"model": "resnet", "size": "tiny", "residual": False, "strategy": "single"})
    assert run.residual == "off" and RunConfig.from_dict(run.to_dict()).residual == "off"
    assert not any("shortcut" in name for name, _ in resolve(run).new_model().named_parameters())
    with pytest.raises(ConfigError, match="--residual does not apply to gpt2 tiny"):
        resolve(RunConfig(model="gpt2", size="tiny", residual="off", strategy="single"))
