"""Which layers tensor ranks share: the plan that transformers has for a model, in the words of `paralab.models.spec`.

Embedding, output layer and experts stay whole on every tensor rank. What has no plan, or a plan with layers that are
not split here, is refused by name.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from paralab.models.spec import Style

# Their word for how a layer is split -> ours.
STYLES: Mapping[str, Style] = {
    "colwise": "column",
    "rowwise": "row",
    "colwise_gather_output": "column_gathered",
    "colwise_rep": "column_gathered",
    "rowwise_split_input": "row_of_whole",
    "rowwise_rep": "row_of_whole",
    "replicated_with_grad_allreduce": "heads",
}


def our_plan(theirs: Any, prefix: str, modules: Mapping[str, Any]) -> dict[str, Style]:
    """Return the plan in our words; {} where there is none or it has a layer that is not split here.

    theirs: the configuration. prefix: of the names of the base model in that with an output layer. modules: by name.
    """
    plan = _their_plan(theirs, prefix, modules)
    return {pattern: STYLES[word] for pattern, word in plan.items()} if plan.items() <= _known(plan).items() else {}


def problem(theirs: Any, prefix: str, modules: Mapping[str, Any]) -> str:
    """Return why tensor parallelism cannot split a model; empty where it can. Takes what `our_plan` does."""
    plan = _their_plan(theirs, prefix, modules)
    if not plan:
        return "transformers has no tensor plan (base_model_tp_plan) for it"
    unknown = next((pattern for pattern in plan if pattern not in _known(plan)), None)
    return f"its tensor plan splits {unknown} as {plan[unknown]!r}, which is not done here" if unknown else ""


def divides(theirs: Any, plan: Mapping[str, Style]) -> dict[str, int]:
    """Return what the number of tensor ranks has to divide beside the layers: heads, where a rank has some of them.

    theirs: the configuration, whose names are returned. plan: in our words; some leave attention whole.
    """
    if "column_gathered" in plan.values() or not any("att" in pattern for pattern in plan):  # self_attn, attention
        return {}
    heads = {name: getattr(theirs, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
    return {name: number for name, number in heads.items() if isinstance(number, int)}


def _their_plan(theirs: Any, prefix: str, modules: Mapping[str, Any]) -> dict[str, str]:
    """Return their plan: pattern of a module's full name -> their word. Patterns that match nothing are left out."""
    plan = getattr(theirs, "base_model_tp_plan", None) or {}
    named = {f"{prefix}.{pattern}": word for pattern, word in plan.items() if not _stays_whole(pattern, word)}
    return {at: word for at, word in named.items() if any(fnmatchcase(name, at) for name in modules)}


def _stays_whole(pattern: str, word: str) -> bool:
    """Whether an entry is of the embedding before the blocks (within them it is a layer), or of experts (`ep`)."""
    return (word == "embedding_rowwise" and "*" not in pattern) or word == "moe_tp_experts"


def _known(plan: Mapping[str, str]) -> dict[str, str]:
    return {pattern: word for pattern, word in plan.items() if word in STYLES}
