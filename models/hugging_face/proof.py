"""Whether an architecture computes the same cut into pipeline stages, or shared by tensor ranks: tried, on a tiny one.

Stages and tensor plans rest on how a model of transformers is written: that nothing happens between its embedding and
its layers but in modules, or that a norm between two split layers sees one head and not all of them. So a tiny model of
the same configuration is run on the CPU, whole and cut, and the results are compared. What differs is refused.
"""

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor, nn

from paralab.models.hugging_face.config import CausalLMConfig, new_model
from paralab.models.hugging_face.sequence import SequenceRanks
from paralab.models.hugging_face.smaller import tiny
from paralab.models.hugging_face.stages import cut_stage, wrapped
from paralab.models.hugging_face.thread_ranks import ThreadRanks
from paralab.models.spec import Cut, Style, WithoutInit

_CLOSE = 1e-5  # relative; rounding is 1e-7, and what is forgotten 1e-3 and more
_MOST_WEIGHTS = 20_000_000  # of a model that is tried: a second of work


class _NotTriedError(Exception):
    """There is no small model of an architecture that runs."""


def _or_why_not(problem: Callable[..., str]) -> Callable[..., str]:
    """Have a function that tries an architecture return why it cannot be tried."""

    @lru_cache(maxsize=32)
    @wraps(problem)
    def tried(*args: Any) -> str:
        try:
            return problem(*args)
        except _NotTriedError as error:
            return str(error)

    return tried


@_or_why_not
def stage_problem(config: CausalLMConfig, blocks_of: Callable[[CausalLMConfig], tuple[str, ...]]) -> str:
    """Return why the stages of a pipeline would not compute what the whole model does; empty where they do."""
    small = tiny(config)
    blocks = blocks_of(small)
    if len(blocks) < 2:
        return "its decoder layers are not found as one list"
    whole, tokens, targets = _tried(small)
    want = whole(tokens, targets=targets)
    try:
        stages = [cut_stage(copy.deepcopy(whole), blocks=blocks, cut=cut) for cut in _cuts(len(blocks))]
        passed: Any = (tokens,)
        for stage in stages[:-1]:
            out = stage(*passed)
            passed = out if isinstance(out, tuple) else (out,)
        got = stages[-1](*passed, targets=targets)
    except Exception as error:  # whatever the model's own code raises
        return f"cut into stages it fails ({_short(error)})"
    want.backward()
    got.backward()
    lost = _lost(whole, stages, want, got)
    return f"cut into stages it computes something else: {lost}" if lost else ""


def _cuts(blocks: int) -> list[Cut]:
    """Return a first stage, one in the middle where there are blocks for it, and a last stage."""
    held = [range(1), range(1, blocks - 1), range(blocks - 1, blocks)]
    return [Cut(part, first=part.start == 0, last=part.stop == blocks) for part in held if part]


def _lost(whole: nn.Module, stages: list[nn.Module], want: Tensor, got: Tensor) -> str:
    """Return what differs between a model and its stages, all with gradients; empty where nothing does."""
    if not torch.allclose(want, got, rtol=_CLOSE):
        return f"a loss of {got.item():.6g} and not {want.item():.6g}"
    names = {id(p): name for name, p in whole.named_parameters()}
    origin = {name: names[id(p)] for name, p in whole.named_parameters(remove_duplicate=False)}
    summed: dict[str, Tensor] = {}
    for name, p in (named for stage in stages for named in stage.named_parameters()):
        if p.grad is not None:
            summed[origin[name]] = summed.get(origin[name], torch.zeros(())) + p.grad
    for name, p in whole.named_parameters():
        if p.grad is None:
            continue
        rounding = 1e-5 * p.grad.abs().max().item()
        if name not in summed or not torch.allclose(summed[name], p.grad, rtol=1e-3, atol=rounding):
            return f"another gradient of {name}"
    return ""


@_or_why_not
def tensor_problem(config: CausalLMConfig, plan_of: Callable[[CausalLMConfig], Mapping[str, Style]]) -> str:
    """Return why two tensor ranks would not compute what the whole model does by its plan; empty where they do.

    What is whole on every rank has to see the same on all of them: else its gradient would be a term of a sum, unless
    the plan says so (`heads`).
    """
    small = tiny(config)
    plan = plan_of(small)
    whole, tokens, targets = _tried(small)
    ranks = ThreadRanks(2, plan)
    with torch.no_grad():
        want = whole(tokens, targets=targets)
        try:
            got = ranks.run(whole, lambda model: model(tokens, targets=targets))
        except Exception as error:  # as above
            return f"split by its tensor plan it fails ({_short(error)})"
    if not all(torch.allclose(loss, want, rtol=_CLOSE) for loss in got):
        losses = f"a loss of {got[0].item():.6g} and not {want.item():.6g}"
        return f"split by its tensor plan it computes something else: {losses}"
    odd = ranks.whole_with_other_inputs()
    return f"its tensor plan misses that {odd[0]} is whole on every rank, and sees a part of the heads" if odd else ""


@_or_why_not
def sequence_problem(config: CausalLMConfig) -> str:
    """Return why two ranks that share a sequence would not compute what the whole model does; empty where they do."""
    whole, tokens, targets = _tried(tiny(config))
    even = tokens.shape[1] // 2 * 2
    tokens, targets = tokens[:, :even], targets[:, :even]
    with torch.no_grad():
        want = whole(tokens, targets=targets)
        try:
            got = torch.stack(SequenceRanks(2).run(whole, lambda model: model(tokens, targets=targets))).mean()
        except Exception as error:  # as above
            return f"its sequence cannot be shared by ranks ({_short(error)})"
    if torch.allclose(got, want, rtol=_CLOSE):
        return ""
    losses = f"a loss of {got.item():.6g} and not {want.item():.6g}"
    return f"with a sequence that ranks share it computes something else: {losses}"


def _tried(config: CausalLMConfig) -> tuple[Any, Tensor, Tensor]:
    """Return a model, tokens and targets, both (2, seq_len) int64.

    Its weights are large enough for every one of them to matter, norms and biases included.
    Raises: _NotTriedError where the model is large, or fails.
    """
    with torch.device("meta"), WithoutInit():
        weights = sum(p.numel() for p in new_model(config).parameters())
    if weights > _MOST_WEIGHTS:
        raise _NotTriedError(f"the smallest model of its kind has {weights / 1e6:,.0f} M weights, too many to try it")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = wrapped(new_model(config)).train()
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        tokens = torch.randint(config.vocab_size, (2, config.seq_len + 1))
        try:
            model(tokens[:, :-1], targets=tokens[:, 1:])
        except Exception as error:  # whatever the model's own code raises
            raise _NotTriedError(f"a small model of its kind fails ({_short(error)})") from None
    return model, tokens[:, :-1], tokens[:, 1:]


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
