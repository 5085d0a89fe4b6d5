"""Find what a goal leaves open (tokens, days, money or GPUs), and the layouts of that training."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paralab.axes.weights import active_weights, all_weights
from paralab.console.phases import Phases, hidden
from paralab.errors import ConfigError, LayoutError
from paralab.planning.candidates import CHOSEN
from paralab.planning.goals import Goal, tokens_of
from paralab.planning.hardware import Device
from paralab.planning.predict import model_flops
from paralab.planning.scale import DAY_S, HOFFMANN, Training, n_weights, unit, units_per_step
from paralab.planning.search import Found, search
from paralab.planning.settle import Settled, settle

MOST_GPUS = 1 << 20
Search = Callable[[int | None], Found]  # the layouts on so many GPUs; None: on as many as the question says


@dataclass(frozen=True)
class Solved:
    """The layouts of a training, how long it is (None where nothing was said of it), and what was solved for."""

    found: Found
    training: Training | None
    said: tuple[str, ...] = ()


def solve(
    goal: Goal, raw: Mapping[str, Any], own: Mapping[str, Device] | None, gpu: str, phases: Phases | None = None
) -> Solved:
    """Return the layouts of a question, and the training that its goal stands for. phases: shows how far it is.

    Raises: UsageError where a column cannot be; LayoutError where no layout is legal, or no number of GPUs is enough.
    """

    phases = phases or hidden()
    phases.begin("looking at layouts")

    def on(n: int | None) -> Found:
        phases.advance()
        return search(raw if n is None else {**raw, "n_gpus": n}, own, gpu)

    if goal.finds_gpus:
        if goal.budget_usd is not None:
            return _gpus_of_budget(goal, on)
        alone = {name: value for name, value in raw.items() if name not in (*CHOSEN, "global_batch_size")}
        return _gpus_of_tokens(goal, settle(alone, own, gpu), on)
    found = on(None)
    if not found.n_fit or not goal.is_there:
        return Solved(found, None)
    return _tokens(goal, found)


def _tokens(goal: Goal, found: Found) -> Solved:
    """Return the training on GPUs that are given: its tokens are given, or follow from days or dollars."""
    price, days, tokens = goal.dollars_per_hour, goal.days, goal.tokens
    if tokens is not None:
        return Solved(found, Training(*_given(tokens, found), price))
    if days is None:
        assert goal.budget_usd is not None and price is not None
        days = goal.budget_usd / price / 24 / found.settled.case.n_gpus
        named, source = f"{goal.budget_usd:,.0f} dollars", "budget / price / predicted step time"
    else:
        named, source = f"{days:g} days", "days / predicted step time"
    training = Training(_in(found, days), source, price)
    return Solved(found, training, (f"Solved for the tokens: what {named} are enough for.",))


def _given(text: str, found: Found) -> tuple[float, str]:
    """Return the tokens that were asked for, samples of what is not text, and where they come from."""
    amount, a_weight = tokens_of(text)
    if not a_weight:
        return amount, "given"
    if unit(found) != "tokens":
        raise ConfigError(f"--tokens {text}: tokens a weight are of texts, and these are {unit(found)}: give a number")
    return amount * n_weights(found), f"{amount:g} a weight{f': {HOFFMANN}' if amount == 20 else ''}"


def _in(found: Found, days: float) -> float:
    return days * DAY_S / float(found.prediction.step_time_s[found.best]) * units_per_step(found)


def _gpus_of_budget(goal: Goal, on: Search) -> Solved:
    """Money buys device-hours, and the days divide them into GPUs."""
    assert goal.budget_usd is not None and goal.dollars_per_hour is not None and goal.days is not None
    enough = goal.budget_usd / goal.dollars_per_hour / 24 / goal.days
    n = next((n for n in reversed(list(counts(8))) if n <= enough), 0)
    if not n:
        raise LayoutError(f"{goal.budget_usd:,.0f} dollars are less than one GPU costs in {goal.days:g} days: use more")
    found = on(n)
    if not found.n_fit:
        return Solved(found, None, (f"Solved for the GPUs: {n:,} are what the budget is enough for.",))
    training = Training(_in(found, goal.days), "days / predicted step time", goal.dollars_per_hour)
    said = f"Solved for GPUs and tokens: {n:,} GPUs are what the budget is enough for."
    return Solved(found, training, (said,))


def _gpus_of_tokens(goal: Goal, settled: Settled, on: Search) -> Solved:
    """Try more and more GPUs until the training ends in time."""
    assert goal.days is not None and goal.tokens is not None
    fastest, least = None, _fewest(goal, settled)
    for n in counts(settled.case.gpus_per_node):
        if n < least:
            continue
        try:
            found = on(n)
        except LayoutError:
            continue
        if not found.n_fit:
            continue
        tokens, source = _given(goal.tokens, found)
        steps = tokens / units_per_step(found)
        days = steps * float(found.prediction.step_time_s[found.best]) / DAY_S
        if days <= goal.days:
            said = f"Solved for the GPUs: {n:,} are the fewest (of those tried) that end within {goal.days:g} days."
            return Solved(found, Training(tokens, source, goal.dollars_per_hour), (said,))
        if fastest is not None and days > 1.05 * fastest:
            break  # more GPUs have no more to divide
        fastest = min(fastest or days, days)
    what = f"no number of GPUs ends {goal.tokens} tokens in {goal.days:g} days"
    raise LayoutError(f"{what}{f' ({fastest:,.1f} at best)' if fastest else ''}: give more days, or a larger batch")


def _fewest(goal: Goal, settled: Settled) -> float:
    """Return the GPUs that would end in time at the peak of their datasheet: fewer need not be tried."""
    assert goal.days is not None and goal.tokens is not None
    amount, a_weight = tokens_of(goal.tokens)
    tokens = amount * float(all_weights(settled.case)) if a_weight else amount
    case = settled.case
    peak = (settled.device.peak_tflops(str(case.precision)) or 0.0) * 1e12
    each = model_flops(case) / case.global_batch_size if case.is_counted else 6 * active_weights(case)
    return float(each) * tokens / (peak * goal.days * DAY_S)


def counts(per_node: int) -> Iterator[int]:
    """Yield numbers of GPUs, fewest first: powers of two within a node, then 2, 3, 4, 5, 6, 7 x 2^k nodes and so on."""
    n = 1
    while n < per_node:
        yield n
        n *= 2
    nodes = 1
    while nodes * per_node <= MOST_GPUS:
        for quarters in (4, 5, 6, 7) if nodes >= 4 else (4, 6) if nodes == 2 else (4,):
            yield nodes * quarters // 4 * per_node
        nodes *= 2
