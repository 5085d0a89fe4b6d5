"""The most FLOP/s a device can do, from its datasheet or measured here, and how much of it a run used."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch

_BUDGET_S = 1.0


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one device in one dtype. `source` begins with "datasheet" or "measured"."""

    flops: float
    source: str


@dataclass(frozen=True)
class _Gpu:
    name: str  # a part of torch.cuda.get_device_name, the first match counts
    bf16: float | None
    fp16: float | None
    source: str


# Dense matrix products with fp32 accumulation, without sparsity.
_TORCHTITAN = "torchtitan tools/utils.py get_peak_flops, from NVIDIA and AMD datasheets"
_GPUS = (
    _Gpu("H100 NVL", 835e12, 835e12, "NVIDIA H100 datasheet"),
    _Gpu("H100 PCIe", 756e12, 756e12, "NVIDIA H100 datasheet"),
    _Gpu("H100", 989.4e12, 989.4e12, "NVIDIA H100 SXM datasheet"),
    _Gpu("H200", 989.4e12, 989.4e12, "NVIDIA H200 datasheet"),
    _Gpu("GB200", 2500e12, 2500e12, _TORCHTITAN),
    _Gpu("GB300", 2500e12, 2500e12, _TORCHTITAN),
    _Gpu("B200", 2250e12, 2250e12, _TORCHTITAN),
    _Gpu("B300", 2250e12, 2250e12, _TORCHTITAN),
    _Gpu("A100", 312e12, 312e12, "NVIDIA A100 datasheet"),
    _Gpu("V100", None, 125e12, "NVIDIA V100 datasheet"),
    _Gpu("T4", None, 65e12, "NVIDIA T4 datasheet"),
    _Gpu("L40S", 362e12, 362e12, _TORCHTITAN),
    _Gpu("L4", 121e12, 121e12, "NVIDIA L4 datasheet, half of its sparse 242"),
    _Gpu("RTX 4090", 165.2e12, 165.2e12, "NVIDIA Ada architecture whitepaper, fp32 accumulation"),
    _Gpu("RTX 3090", 71e12, 71e12, "NVIDIA Ampere GA102 whitepaper, fp32 accumulation"),
    _Gpu("MI300X", 1307.4e12, 1307.4e12, "AMD MI300X datasheet"),
    _Gpu("MI250X", 191.5e12, 191.5e12, "AMD MI250X datasheet, one of two dies"),
)


def datasheet_peak(device_name: str, dtype: torch.dtype) -> Peak | None:
    """Return the datasheet's dense peak for a GPU, or None for a device or dtype that is not in the table."""
    words = f" {device_name.replace('-', ' ')} "
    # A part of a GPU (MIG), a laptop's and a Ti or D are other devices under almost the same name.
    other = "(?!.* (?:MIG|Laptop|Ti|D|Max Q) )"
    gpu = next((gpu for gpu in _GPUS if re.search(f" {gpu.name}{other} ", words)), None)
    flops = {torch.bfloat16: gpu.bf16, torch.float16: gpu.fp16}.get(dtype) if gpu else None
    return Peak(flops, f"datasheet: {gpu.source}") if gpu and flops else None


@cache
def measured_peak(device_type: Literal["cpu", "cuda"], dtype: torch.dtype, *, threads: int | None = None) -> Peak:
    """Return the fastest square matrix product of a few sizes, found within about a second, once per process.

    threads: those torch uses on a CPU; only part of the cache key and of the source's text. Ranks that share a
    machine measure what each gets while all measure. 2 n^3 operations for n x n matrices.
    """
    device = torch.device(device_type)
    sizes = (256, 512, 1024, 2048) if device_type == "cpu" else (2048, 4096, 8192)
    deadline = time.perf_counter() + _BUDGET_S
    best, best_size = 0.0, sizes[0]
    for size in sizes:
        a, b, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
        share_s = max((deadline - time.perf_counter()) / 2, 0.02)
        flops = 2 * size**3 / _best_seconds(partial(torch.mm, a, b, out=out), device, share_s)
        if flops > best:
            best, best_size = flops, size
        if 8 * 2 * 2 * size**3 / flops > deadline - time.perf_counter():  # the next size is eight times the work
            break
    where = f"{threads or torch.get_num_threads()} threads" if device_type == "cpu" else torch.cuda.get_device_name()
    return Peak(best, f"measured: {str(dtype).removeprefix('torch.')} product of {best_size}, {where}")


def _best_seconds(product: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """Return the shortest time of one call, after one that warms up."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    product()
    wait()
    best_s, deadline = float("inf"), time.perf_counter() + budget_s
    while True:
        began = time.perf_counter()
        product()
        wait()
        ended = time.perf_counter()
        best_s = min(best_s, ended - began)
        if ended >= deadline:
            return best_s


def device_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Return the datasheet's peak where there is one, else measure it."""
    known = datasheet_peak(torch.cuda.get_device_name(device), dtype) if device.type == "cuda" else None
    return known or measured_peak(device.type, dtype, threads=torch.get_num_threads())
