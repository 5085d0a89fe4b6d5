"""A model that works token by token is counted at short lengths, to the last element."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from paralab.models import SPECS
from paralab.planning import counted, lengths
from paralab.planning.parts import Counted, Kept, Part


def test_a_mamba_takes_at_a_long_length_what_is_counted_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is said of kernels that are not installed."""
    small = transformers.MambaConfig(num_hidden_layers=2, state_size=4, hidden_size=32, vocab_size=300)
    small.save_pretrained(tmp_path)
    spec = SPECS[f"hf:{tmp_path}"]
    config = replace(spec.config("full"), seq_len=56)
    there = counted._count(spec, config)
    assert there.kept_in_16 is not None and there.kept_of_cast is not None
    probed, once = [], counted._count

    def noted(spec: Any, config: Any) -> Counted:
        probed.append(config.seq_len)
        return once(spec, config)

    monkeypatch.setattr(counted, "_count", noted)
    assert counted.count(spec, config) == there
    assert tuple(probed) == lengths.PROBED
    assert capfd.readouterr() == ("", "")


def made(tokens: int, *, flops: float, in_16: bool = True) -> Counted:
    """Return a model of one block, which has as many launches as tokens."""
    kept = Kept(first=tokens, blocks=3 * tokens, last=0, handed_on=tokens**2, divided=0) if in_16 else None
    block = Part(weights=7, flops=flops, launches=tokens)
    return Counted((block,), Part(), Part(kept=tokens), 1, "tokens", tokens, kept_in_16=kept)


def test_numbers_that_are_polynomials_of_the_length_follow() -> None:
    """And where one is not, as beyond a window, or where a length is counted in another way, none of them does."""
    square = [made(n, flops=5 * n**2 + 2 * n + 1) for n in lengths.PROBED]
    assert lengths.by_tokens(square[:2])
    found = lengths.at_length(square, 1000)
    assert found == replace(made(1000, flops=5_002_001), units_per_sample=lengths.PROBED[0])
    windowed = [made(n, flops=n * min(n, 30)) for n in lengths.PROBED]
    assert lengths.at_length(windowed, 1000) is None
    assert lengths.at_length([*square[:3], made(40, flops=8081, in_16=False)], 1000) is None
    bent = [replace(one, kept_in_16=Kept(n**3, 0, 0, 0, 0)) for one, n in zip(square, lengths.PROBED, strict=True)]
    assert lengths.at_length(bent, 1000) is None
    assert not lengths.by_tokens([square[0], square[0]])
