"""The variants of `paralab peers`: which there are for each model, and which of them run on this machine."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from paralab.errors import ConfigError, WorldError, did_you_mean

Table = Mapping[str, tuple[int, str | None]]  # variant -> (processes, the one of ours to compare with; None for ours)

VARIANTS: Table = {
    "ours single": (1, None),
    "plain loop": (1, "ours single"),
    "transformers": (1, "ours single"),
    "ours ddp": (2, None),
    "raw DDP": (2, "ours ddp"),
    "ours zero3": (2, None),
    "raw FSDP2": (2, "ours zero3"),
    "ours zero1": (2, None),
    "ZeroRedundancyOptimizer": (2, "ours zero1"),
}
# Of an own module: ours is `import paralab` (benchmarks/own_loops.py).
OWN_VARIANTS: Table = {
    "ours ddp": (2, None),
    "Accelerate DDP": (2, "ours ddp"),
    "Fabric DDP": (2, "ours ddp"),
    "ours zero3": (2, None),
    "Accelerate FSDP2": (2, "ours zero3"),
    "Fabric FSDP2": (2, "ours zero3"),
}
OF_MODELS = {"gpt2": VARIANTS, "own": OWN_VARIANTS}
EVERY = tuple(dict.fromkeys(variant for table in OF_MODELS.values() for variant in table))


def chosen(names: list[str] | None, *, gpus: int | None, model: str = "gpt2") -> list[str]:
    """Return the variants to run, each after the one of ours that it is compared with. gpus: None on a CPU.

    Raises: ConfigError for one that the model does not have or that is not installed, WorldError for too few GPUs.
    """
    table = OF_MODELS[model]
    for variant in names or ():
        if variant not in table:
            raise ConfigError(
                f"--model {model} has no variant {variant}{did_you_mean(variant, table)}: use {', '.join(table)}"
            )
        if not room_for(table[variant][0], gpus):
            raise WorldError(
                f"variant {variant} needs {table[variant][0]} GPUs, {gpus} here: leave it out of --variants"
            )
        if not installed(variant):
            raise ConfigError(f"variant {variant} needs Lightning Fabric: type pip install lightning-fabric")
    variants = names or [name for name, (nproc, _) in table.items() if room_for(nproc, gpus) and installed(name)]
    ours = [table[variant][1] for variant in variants if table[variant][1]]
    return [variant for variant in table if variant in variants or variant in ours]


def left_out(variants: list[str], *, gpus: int | None, model: str = "gpt2") -> Iterator[str]:
    """Yield a line for what was not chosen because it is not installed, or because each process needs a GPU."""
    table = OF_MODELS[model]
    for variant, (nproc, _) in table.items():
        if variant in variants:
            continue
        if not room_for(nproc, gpus):
            yield f"{variant} left out: it needs {nproc} GPUs, {gpus} here"
        elif not installed(variant):
            yield f"{variant} left out: it needs Lightning Fabric, type pip install lightning-fabric"


def room_for(processes: int, gpus: int | None) -> bool:
    """Return whether there is a GPU for each process, or there are none at all."""
    return gpus is None or processes <= gpus


def installed(variant: str) -> bool:
    """Return whether the library of a variant is there; all but Fabric come with paralab."""
    return not variant.startswith("Fabric") or package_of_fabric() is not None


def package_of_fabric() -> str | None:
    """Return the package that Fabric is in, of the two that it is published in; None where neither is installed."""
    if find_spec("lightning") is not None:
        return "lightning.fabric"
    return "lightning_fabric" if find_spec("lightning_fabric") is not None else None
