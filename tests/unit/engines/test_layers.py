"""Root mean squares of one process, against those of tensors that were kept by hand."""

import pytest
import torch

from paralab.engines import native
from paralab.engines.layers import LayerStats
from paralab.options.config import RunConfig
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.processes.mesh import make_mesh


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("model", ["gpt2", "resnet"])
def test_root_mean_squares_are_those_by_hand(model: str, precision: str) -> None:
    plain = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr_schedule": "constant"}
    steps = {"strategy": "single", "global_batch_size": 8, "learning_rate": 0.5, "clip_norm": 0.01}
    run = RunConfig.from_dict({"model": model, "size": "tiny", "precision": precision, **plain, **steps})
    work = resolve(run)
    mesh = make_mesh(work.layout, torch.device("cpu"))
    engine = native.build(work.context(mesh))
    batches, stats = training_batches(work, mesh), LayerStats(engine)
    engine.step(next(batches))
    before = {name: p.detach().clone() for name, p in engine.parameters()}
    with stats.of_a_step():
        norm = engine.step(next(batches)).grad_norm.item()
    assert engine.watched_by is None and norm > 0.1, "it clips"
    rms = stats.read()
    assert list(rms.names) == list(before) and list(rms.numels) == [p.numel() for p in before.values()]
    after = dict(engine.parameters())
    for name, (weight, gradient, update) in zip(rms.names, rms.values.T.tolist(), strict=True):
        change = (after[name].detach() - before[name]).double().square().mean().sqrt().item()
        assert weight == pytest.approx(before[name].double().square().mean().sqrt().item(), rel=1e-6)
        assert update == pytest.approx(change, rel=1e-6, abs=1e-12)
        # plain SGD: the update is the clipped gradient times the learning rate, rounded as weights are
        rounding = {"fp32": 1e-7, "fp64": 1e-15}[precision]
        assert gradient * 0.01 / (norm + 1e-6) * 0.5 == pytest.approx(change, rel=1e-6, abs=rounding)
    engine.step(next(batches))
    assert torch.equal(stats.read().values, rms.values), "a step outside is not measured"
