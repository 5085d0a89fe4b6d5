"""What is measured for the claims: series of tiny runs, of which each compares ways of doing one piece of work."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from paralab.errors import ConfigError, did_you_mean

Options = Mapping[str, Any]
Kind = Literal["run", "dry run", "cluster"]

_IMAGES: dict[str, Any] = {"model": "resnet", "size": "20", "global_batch_size": 8}
_SMALL_IMAGES: dict[str, Any] = _IMAGES | {"size": "tiny"}
_TEXTS: dict[str, Any] = {"model": "gpt2", "size": "6x64x4v257", "seq_len": 64, "global_batch_size": 8}
_SHARDED: dict[str, Any] = {"model": "gpt2", "size": "2x64x4v257", "seq_len": 16, "global_batch_size": 64}
_STAGES = ("", "/zero1", "/zero2", "/zero3")


@dataclass(frozen=True)
class Series:
    """Cases that are measured together, their repeats interleaved. Names and values are those of options.

    shared: options of all cases. cases: what differs between them, the baseline first. parity: the first repeat is
    compared with one process. kind: a dry run counts memory and takes no time; a cluster is simulated, and its cases
    differ in `nodes` and `bandwidth`. on_gpu: it says something on a GPU alone.
    """

    name: str
    shared: Options
    cases: tuple[Options, ...]
    repeats: int = 16
    steps: int = 8
    nproc: int = 1
    kind: Kind = "run"
    parity: bool = False
    on_gpu: bool = False


@dataclass(frozen=True)
class Cluster:
    """The simulated clusters of the series of that kind: Mbit/s of each link, and the cores that a node may use."""

    bandwidths: tuple[int, ...] = (1000, 10)
    cores_per_node: float = 0.6
    nodes: tuple[int, ...] = (1, 3)
    time_limit_s: int = 300


CLUSTER = Cluster()


def layouts(nproc: int) -> tuple[Options, ...]:
    """Return data parallelism over so many processes, then each ZeRO stage over as many."""
    return tuple({"layout": f"dp{nproc}{stage}"} for stage in _STAGES)


def every(cores: int) -> tuple[Series, ...]:
    """Return all series. cores: of the machine, which the numbers of data-loader workers follow."""
    workers = (0, *sorted({max(1, cores // 2), cores, 2 * cores}))
    return (
        Series("channels-last", _IMAGES, ({"channels_last": False}, {"channels_last": True})),
        Series("compile", _TEXTS, ({"compile": "none"}, {"compile": "default"})),
        Series("checkpointing", _TEXTS, ({"checkpointing": "none"}, {"checkpointing": "full"})),
        Series("accumulation", _TEXTS, ({"accumulation": 1}, {"accumulation": 4}), parity=True),
        Series(
            "batch-norm",
            _SMALL_IMAGES | {"norm": "batch"},
            ({"accumulation": 1}, {"accumulation": 4}),
            repeats=1,
            steps=2,
        ),
        Series("batches", _SMALL_IMAGES, tuple({"global_batch_size": size} for size in (2, 8, 32))),
        Series("workers", _SMALL_IMAGES, tuple({"loader_workers": count} for count in workers)),
        Series("casting", _SMALL_IMAGES | {"loader_workers": 1}, ({"cast_on_device": False}, {"cast_on_device": True})),
        Series(
            "pinned",
            _SMALL_IMAGES | {"loader_workers": 1, "non_blocking": True},
            ({"pin_memory": False}, {"pin_memory": True}),
            on_gpu=True,
        ),
        Series("precision", _TEXTS, ({"precision": "fp32"}, {"precision": "bf16"}), repeats=1, steps=2),
        *(Series(f"zero-on-{n}", _SHARDED, layouts(n), repeats=1, steps=1, nproc=n) for n in (2, 4)),
        Series(
            "zero",
            _SHARDED,
            tuple(case for n in (4, 8) for case in layouts(n)),
            repeats=1,
            kind="dry run",
        ),
        Series(
            "nodes",
            _IMAGES | {"global_batch_size": 60, "norm": "batch"},
            tuple({"nodes": n, "bandwidth": float(b)} for b in CLUSTER.bandwidths for n in CLUSTER.nodes),
            kind="cluster",
            repeats=4,
            steps=4,
        ),
    )


def find(names: list[str], cores: int) -> list[Series]:
    """Return the series of these names, all where none is named. Raises: ConfigError for one that is not there."""
    known = {series.name: series for series in every(cores)}
    for name in names:
        if name not in known:
            raise ConfigError(f"series {name} is not one{did_you_mean(name, known)}: use {', '.join(known)}")
    return [known[name] for name in names or known]
