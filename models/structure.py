"""What can be found out about a module that says nothing of itself: its repeated blocks, and its shared parameters."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def find_blocks(module: nn.Module) -> tuple[str, ...]:
    """Return the full names of the repeated layers of a module: of equal layers, those with most parameters.

    They are the children of one ModuleList, ModuleDict or Sequential, at least two, all of one class that can be
    called. () for none.
    """
    found = [(_numel(container), names) for container, names in _repeated(module)]
    return max(found, key=lambda pair: pair[0], default=(0, ()))[1]


def matching(module: nn.Module, pattern: str) -> tuple[str, ...]:
    """Return the full names of the modules that a pattern such as `encoder.layers.*` names; * is one part of a name."""
    depth = pattern.count(".")
    names = (name for name, _ in module.named_modules(remove_duplicate=False))
    return tuple(name for name in names if name.count(".") == depth and fnmatchcase(name, pattern))


def find_tied(module: nn.Module) -> Mapping[str, str]:
    """Return the parameters that have another one's storage, by name, with the first name of that storage."""
    first: dict[int, str] = {}
    every = module.named_parameters(remove_duplicate=False)
    return {name: origin for name, p in every if (origin := first.setdefault(id(p), name)) != name}


def has_batch_norm(module: nn.Module) -> bool:
    """Return whether a module has a norm of torch whose statistics are those of a batch."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def _repeated(module: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    for name, container in module.named_modules():
        layers = dict(container.named_children()) if isinstance(container, _CONTAINERS) else {}
        kinds = {type(layer) for layer in layers.values()}
        if len(layers) >= 2 and len(kinds) == 1 and not kinds & {*_CONTAINERS[:2]} and _numel(container):
            yield container, tuple(f"{name}.{key}" if name else key for key in layers)


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
