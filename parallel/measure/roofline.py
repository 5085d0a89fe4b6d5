"""Peak FLOP/s of a device, from its datasheet or measured here, and the share of it that a run used."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

_BUDGET_S = 1.0


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one device in one dtype. `source` begins with "datasheet" or "measured"."""

    flops: float
    source: str


@dataclass(frozen=True)
class _Gpu:
    fp16: float
    source: str
    has_bf16: bool = True  # at the same rate


_HOPPER = "NVIDIA H100 Tensor Core GPU Architecture whitepaper, table 2"
_H100 = "NVIDIA H100 datasheet, half of its sparse"
_H200 = "NVIDIA H200 datasheet, half of its sparse"
_GH200 = "NVIDIA GH200 datasheet, half of its sparse 1,979"
_A100 = "NVIDIA A100 datasheet"
_V100 = "NVIDIA V100 datasheet"
_ADA = "NVIDIA Ada GPU Architecture whitepaper, FP16 with FP32 accumulation"
_GA102 = "NVIDIA Ampere GA102 GPU Architecture whitepaper, FP16 with FP32 accumulation"
# FLOP/s of dense matrix products with fp32 accumulation, without sparsity. The whole name counts, as nvidia-smi writes
# it: other forms of a card (PCIe, SXM, NVL), laptops', Ti and D, and parts of a GPU (MIG) are other devices. What is
# not here is measured.
_GPUS = {
    "NVIDIA GB300": _Gpu(2500e12, "NVIDIA GB300 NVL72 page: 360 PFLOP/s sparse over 72, halved"),
    "NVIDIA GB200": _Gpu(2500e12, "NVIDIA GB200 NVL72 datasheet: 360 PFLOP/s sparse over 72, halved"),
    "NVIDIA B300 SXM6 AC": _Gpu(2250e12, "NVIDIA HGX B300 page: 36 PFLOP/s sparse over 8, halved"),
    "NVIDIA B200": _Gpu(2250e12, "NVIDIA HGX B200 page: 36 PFLOP/s sparse over 8, halved"),
    "NVIDIA GH200 480GB": _Gpu(989.4e12, _GH200),
    "NVIDIA GH200 144G HBM3e": _Gpu(989.4e12, _GH200),
    "NVIDIA H200": _Gpu(989.4e12, f"{_H200} 1,979 (SXM)"),
    "NVIDIA H200 NVL": _Gpu(835.5e12, f"{_H200} 1,671 (NVL)"),
    "NVIDIA H100 80GB HBM3": _Gpu(989.4e12, f"{_HOPPER} (SXM5)"),
    "NVIDIA H100 NVL": _Gpu(835.5e12, f"{_H100} 1,671 (NVL)"),
    "NVIDIA H100 PCIe": _Gpu(756e12, f"{_HOPPER} (PCIe)"),
    "NVIDIA H20": _Gpu(148e12, "NVIDIA H20 datasheet"),
    "NVIDIA A100-SXM4-80GB": _Gpu(312e12, _A100),
    "NVIDIA A100-SXM4-40GB": _Gpu(312e12, _A100),
    "NVIDIA A100 80GB PCIe": _Gpu(312e12, _A100),
    "NVIDIA A100-PCIE-40GB": _Gpu(312e12, _A100),
    "NVIDIA A30": _Gpu(165e12, "NVIDIA A30 datasheet"),
    "NVIDIA A40": _Gpu(149.7e12, "NVIDIA A40 datasheet"),
    "NVIDIA A10": _Gpu(125e12, "NVIDIA A10 datasheet"),
    "NVIDIA A10G": _Gpu(70e12, "NVIDIA A10G datasheet"),
    "NVIDIA L40S": _Gpu(362.05e12, "NVIDIA L40S datasheet"),
    "NVIDIA L40": _Gpu(181.05e12, "NVIDIA L40 datasheet"),
    "NVIDIA L4": _Gpu(121e12, "NVIDIA L4 datasheet, half of its sparse 242"),
    "NVIDIA RTX 6000 Ada Generation": _Gpu(364.2e12, _ADA),
    "NVIDIA RTX A6000": _Gpu(154.8e12, _GA102),
    "NVIDIA GeForce RTX 4090": _Gpu(165.2e12, _ADA),
    "NVIDIA GeForce RTX 3090": _Gpu(71e12, _GA102),
    "Tesla V100-SXM3-32GB": _Gpu(125e12, "NVIDIA DGX-2 datasheet: 2 PFLOP/s over 16", has_bf16=False),
    "Tesla V100-SXM2-32GB": _Gpu(125e12, _V100, has_bf16=False),
    "Tesla V100-SXM2-16GB": _Gpu(125e12, _V100, has_bf16=False),
    "Tesla V100-PCIE-32GB": _Gpu(112e12, _V100, has_bf16=False),
    "Tesla V100-PCIE-16GB": _Gpu(112e12, _V100, has_bf16=False),
    "Tesla V100S-PCIE-32GB": _Gpu(130e12, _V100, has_bf16=False),
    "Tesla T4": _Gpu(65e12, "NVIDIA T4 datasheet", has_bf16=False),
    "AMD Instinct MI300X": _Gpu(1307.4e12, "AMD Instinct MI300X datasheet"),
}


def datasheet_peak(device_name: str, dtype: torch.dtype) -> Peak | None:
    """Return the datasheet's dense peak for a GPU, or None for a device or dtype that is not in the table."""
    # Drivers before 470 wrote names without the maker's.
    gpu = _GPUS.get(device_name) or _GPUS.get(f"NVIDIA {device_name}")
    known = gpu is not None and (dtype == torch.float16 or (dtype == torch.bfloat16 and gpu.has_bf16))
    return Peak(gpu.fp16, f"datasheet: {gpu.source}") if gpu and known else None


_measured: dict[tuple[str, torch.dtype, int | None], Peak] = {}


def measured_peak(device_type: str, dtype: torch.dtype, *, threads: int | None = None, again: bool = False) -> Peak:
    """Return the fastest square matrix product of a few sizes that this process has seen.

    Measured within about a second when it is first requested, and `again`: a machine that was busy then gives too low a
    peak. threads: those torch uses on a CPU. Ranks that share a machine measure what each gets while all measure.
    """
    key = (device_type, dtype, threads)
    if again or key not in _measured:
        found = [_measure(torch.device(device_type), dtype, threads=threads), *filter(None, [_measured.get(key)])]
        _measured[key] = max(found, key=lambda peak: peak.flops)
    return _measured[key]


def _measure(device: torch.device, dtype: torch.dtype, *, threads: int | None) -> Peak:
    """Time products of n x n matrices: 2 n^3 operations."""
    sizes = (256, 512, 1024, 2048) if device.type == "cpu" else (2048, 4096, 8192)
    deadline = time.perf_counter() + _BUDGET_S
    best, best_size = 0.0, sizes[0]
    own = torch.Generator(device)  # how often this draws depends on time, and may be in the middle of a run
    for size in sizes:
        a, b, out = (torch.randn(size, size, device=device, generator=own).to(dtype) for _ in range(3))
        share_s = max((deadline - time.perf_counter()) / 2, 0.02)
        flops = 2 * size**3 / _best_seconds(partial(torch.mm, a, b, out=out), device, share_s)
        if flops > best:
            best, best_size = flops, size
        if 8 * 2 * 2 * size**3 / flops > deadline - time.perf_counter():  # the next size is eight times the work
            break
    count = threads or torch.get_num_threads()
    where = f"{count} thread{'s' * (count > 1)}" if device.type == "cpu" else torch.cuda.get_device_name()
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


def device_peak(device: torch.device, dtype: torch.dtype, *, again: bool = False) -> Peak:
    """Return the datasheet's peak where there is one, else measure it; again: even if it has been measured."""
    known = datasheet_peak(torch.cuda.get_device_name(device), dtype) if device.type == "cuda" else None
    return known or measured_peak(device.type, dtype, threads=torch.get_num_threads(), again=again)


def share_of_peak(flops_per_s: float, device: torch.device, dtype: torch.dtype) -> float | None:
    """Return what one device achieved over its peak.

    The peak is measured again where it is below; None where it stays below: then it is not the peak.
    """
    peak = device_peak(device, dtype)
    if flops_per_s > peak.flops:
        peak = device_peak(device, dtype, again=True)
    return flops_per_s / peak.flops if flops_per_s <= peak.flops else None
