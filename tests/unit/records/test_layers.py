"""Root mean squares of layers, put together from those of their parameters."""

import math

import pytest

from paralab.records.layers import by_layer, layer_of
from paralab.records.log import LayerRecord


def record(name: str, numel: int, rms: float) -> LayerRecord:
    return LayerRecord(step=4, name=name, numel=numel, weight_rms=rms, gradient_rms=2 * rms, update_rms=rms / 10)


def test_a_layer_is_a_block_or_a_module_and_its_parameters_count_by_their_numbers() -> None:
    names = ("blocks.12.attn.qkv.weight", "embed.tokens.weight", "layers.1.0.conv.weight", "scale")
    assert [layer_of(name) for name in names] == ["blocks.12", "embed.tokens", "layers.1", "scale"]
    rows = [record("blocks.0.a.weight", 30, 2.0), record("blocks.0.b", 10, 0.0), record("head", 5, 1.0)]
    found = by_layer(rows)
    assert list(found) == [4] and list(found[4]) == ["blocks.0", "head"]
    assert found[4]["blocks.0"] == pytest.approx((math.sqrt(3.0), 2 * math.sqrt(3.0), math.sqrt(0.03)))
