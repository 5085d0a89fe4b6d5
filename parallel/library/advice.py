"""What to type where a layout has to be told more of a module, with the names that the module has."""

from torch import nn


def tensor(module: nn.Module) -> str:
    """Return what to say where tensor parallelism is asked for without a plan."""
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    patterns = list(dict.fromkeys(".".join("*" if x.isdigit() else x for x in name.split(".")) for name in linear))
    inside = [pattern for pattern in patterns if "*" in pattern] or patterns or ["layers.*.up", "layers.*.down"]
    first, second = inside[0], inside[min(1, len(inside) - 1)]
    if first == second:
        return f"tensor parallelism needs two layers in a row to split, and {type(module).__name__} has none"
    return (
        f"tensor parallelism needs to know how the layers of {type(module).__name__} are split: give "
        f'tensor={{"{first}": "column", "{second}": "row"}}, a column layer (split by outputs) always before a row '
        "layer (split by inputs)"
    )


def pipeline(module: nn.Module, blocks: tuple[str, ...]) -> str:
    """Return what to say where pipeline stages are asked for, and blocks or what is around them is not known."""
    if not blocks:
        return (
            f"{type(module).__name__} has no repeated blocks to divide into stages (a ModuleList of equal layers): "
            "name them with blocks='layers.*', or use a layout without pp"
        )
    children = [name for name, _ in module.named_children()]
    container = blocks[0].split(".")[0]
    at = children.index(container)
    before, after = children[:at] or ["embed"], children[at + 1 :] or ["head"]
    return (
        f"a pipeline needs to know what runs before and after the {len(blocks)} blocks {blocks[0]} ...: give "
        f"pipeline=paralab.Pipeline(before={_names(before)}, after={_names(after)}) and example=batch"
    )


def _names(names: list[str]) -> str:
    return repr(names[0]) if len(names) == 1 else repr(tuple(names))
