"""Devices that the planner knows (`devices.csv`), and how to describe one of one's own.

Peaks are dense, from datasheets; the column `verified` says how sure each line is. A link is of one GPU in one
direction.
"""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, get_args

from paralab.console.inputs import read_text
from paralab.errors import ConfigError, did_you_mean
from paralab.layout.layout import MOST_RANKS
from paralab.options.choices import Precision
from paralab.options.numbers import meant
from paralab.planning.measured.device import MeasuredDevice, is_measured, read

FILE = Path(__file__).with_name("devices.csv")
DEFAULT_GPU = "H100-SXM-80GB"  # where a row or a command names none
USABLE = 0.985  # of the memory that the name of a device says: what the driver leaves
# Watts for a TFLOP/s of the 16-bit peak of the device whose sustained share stands for its generation.
REFERENCE_WATTS = {
    "Volta": 300 / 125,
    "Turing": 70 / 65,
    "Ampere": 400 / 312,
    "Ada": 350 / 362,
    "Hopper": 700 / 989.4,
    "Blackwell": 1000 / 2250,
    "CDNA3": 750 / 1307.4,
}
# GB/s between a device and its host, one direction: 16 lanes of PCI Express 3, 4 and 5 (PCI-SIG: 8, 16 and 32 GT/s a
# lane, 128 bits in 130); half of the NVLink-C2C of a Grace with two Blackwells (NVIDIA GB200 datasheet: 900 both ways)
HOST_LINKS = {"Volta": 15.75, "Turing": 15.75, "Hopper": 63.0, "Blackwell": 63.0, "CDNA3": 63.0}
HOST_LINK, GRACE_LINK = 31.5, 225.0
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "nvfp4")
TRAINED_PRECISIONS = tuple(name for name in get_args(Precision) if name in PRECISIONS)  # that paralab trains in
LIMIT = 1e9  # no figure of a device is larger


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device as its datasheet describes it. peak_*_tflops: dense; None where it has no such products.

    memory_gib: that a program can use. link_gbyte_per_s: inside a node. network_gbit_per_s: of one GPU, between nodes.
    measured: what `paralab calibrate` found, where the device is not known from a datasheet.
    """

    gpu: str
    arch: str
    peak_bf16_tflops: float | None
    peak_fp16_tflops: float | None
    peak_fp8_tflops: float | None
    peak_fp4_tflops: float | None
    peak_fp32_tflops: float | None
    memory_gib: float
    memory_gbyte_per_s: float
    link_gbyte_per_s: float
    network_gbit_per_s: float
    gpus_per_node: int
    watts: float | None
    verified: str
    measured: MeasuredDevice | None = None

    def peak_tflops(self, precision: str) -> float | None:
        """Return the dense peak in a precision, None where the device has none."""
        return {
            "fp32": self.peak_fp32_tflops,
            "fp16": self.peak_fp16_tflops,
            "bf16": self.peak_bf16_tflops,
            "fp8": self.peak_fp8_tflops,
            "nvfp4": self.peak_fp4_tflops,
        }[precision]

    @property
    def default_precision(self) -> str:
        """The precision of a training that names none."""
        if self.measured is not None and self.measured.kind == "cpu":
            return "fp32"
        return "bf16" if self.peak_bf16_tflops else "fp16"

    @property
    def half_tflops(self) -> float:
        """The peak in 16 bits, which attention is computed in."""
        peak = self.peak_bf16_tflops or self.peak_fp16_tflops or (self.peak_fp32_tflops if self.measured else None)
        assert peak is not None
        return peak

    @property
    def host_gbyte_per_s(self) -> float:
        """The link to the host, in one direction; of devices of an unknown generation that of PCI Express 4."""
        return GRACE_LINK if self.gpu.startswith("GB") else HOST_LINKS.get(self.arch, HOST_LINK)

    def watts_ratio(self, gpus_per_node: int) -> float:
        """Return watts for a FLOP, compared with the device that stands for the generation; 1 where unknown.

        V100 in nodes of 16 are those of a DGX-2, which may take 350 W (NVIDIA DGX-2 datasheet).
        """
        reference = REFERENCE_WATTS.get(self.arch)
        if self.watts is None or reference is None:
            return 1.0
        watts = max(self.watts, 350.0) if self.arch == "Volta" and gpus_per_node == 16 else self.watts
        return min(max(watts / self.half_tflops / reference, 0.2), 1.3)


@cache
def known() -> Mapping[str, Device]:
    """Return the devices of `devices.csv`, by name."""
    with open(FILE, encoding="utf-8", newline="") as file:
        return {row["gpu"]: _from_row(row) for row in csv.DictReader(file)}


def _from_row(row: Mapping[str, str]) -> Device:
    numbers = {
        name: float(row[name]) if row[name] else None
        for name in row
        if name.startswith("peak_") or name in ("memory_gbyte_per_s", "link_gbyte_per_s", "network_gbit_per_s", "watts")
    }
    values: dict[str, Any] = {
        **numbers,
        "gpu": row["gpu"],
        "arch": row["arch"],
        "memory_gib": float(row["memory_gb"]) * USABLE,
        "gpus_per_node": int(row["gpus_per_node"]),
        "verified": row["verified"],
    }
    return Device(**values)


# What drivers (nvidia-smi --query-gpu=name) and people call devices, without the maker and what is between the words,
# where `devices.csv` calls them otherwise and the name is that of one device alone.
_OTHER_NAMES = {
    "h100 80gb hbm3": "H100-SXM-80GB",
    "h100 sxm": "H100-SXM-80GB",
    "h100 pcie": "H100-PCIe-80GB",
    "h100 nvl": "H100-NVL-94GB",
    "a100 80gb pcie": "A100-PCIe-80GB",
    "a100 pcie 80gb": "A100-PCIe-80GB",
    "h200": "H200-SXM-141GB",
    "b200": "B200-SXM",
    "b300": "B300-SXM",
    "b300 sxm6 ac": "B300-SXM",
    "rtx 3090": "RTX3090-24GB",
    "rtx 4090": "RTX4090-24GB",
}
_MAKERS = re.compile(r"^(?:(?:nvidia|tesla|geforce|amd|instinct)\s+)+")


def is_known(name: str) -> str | None:
    """Return the name of a device as `devices.csv` has it; None where it is not there.

    name: in any case, also as a driver has it (NVIDIA H100 80GB HBM3), with a space, a dash or nothing between words.
    """
    return _by_bare_name().get(_bare(name))


@cache
def _by_bare_name() -> Mapping[str, str]:
    return {_bare(name): key for name, key in (*((key, key) for key in known()), *_OTHER_NAMES.items())}


def _bare(name: str) -> str:
    """Return a name in small letters without the maker, the generation of SXM, and what is between its words."""
    words = _MAKERS.sub("", " ".join(name.lower().split()))
    return re.sub("[^a-z0-9]", "", re.sub(r"sxm[0-9](?![0-9])", "sxm", words))


def find(name: str, own: Mapping[str, Device] | None = None) -> Device:
    """Return a device by name, in any case, or by the file of one that was measured. own: that the user describes.

    Raises: ConfigError for an unknown one, with the closest names (all where none is close), or how to describe one.
    """
    if is_measured(name):
        return _measured(name, Path(name).stat().st_mtime_ns if Path(name).is_file() else 0)
    devices = {**known(), **(own or {})}
    exact = {key.lower(): key for key in devices}
    if name.lower() in exact:
        return devices[exact[name.lower()]]
    if (same := is_known(name)) is not None:
        return devices[same]
    begins = [key for key in exact if name and key.startswith(name.lower())]
    close = begins or get_close_matches(name.lower(), list(exact), n=4, cutoff=0.5) or list(exact)
    closest = ", ".join(exact[key] for key in close)
    raise ConfigError(
        f"GPU {name!r} is unknown: use one of {closest}, or describe it: --peak-tflops 100 "
        "--memory-gib 24 --memory-gbyte-per-s 900 (and --link-gbyte-per-s, --network-gbit-per-s), or --device FILE.json"
        f' with {{"gpu": "{name}", "peak_tflops": 100, "memory_gib": 24, "memory_gbyte_per_s": 900}}'
    )


@cache
def _measured(name: str, changed_ns: int) -> Device:
    """Return the device of a file; read once, as long as it does not change. changed_ns: when it last did."""
    return from_measured(name, read(Path(name)))


def from_measured(name: str, device: MeasuredDevice) -> Device:
    """Return a measured device by the name of its file, with the most that was measured in place of a datasheet.

    A machine of processors is one node; the network between several is that of the case, or 10 Gbit/s.
    """
    peaks = {
        dtype: max(s.flops / s.seconds for r in device.rates for s in r.operations.get(f"product {dtype}", ()))
        for dtype in ("float32", "bfloat16", "float16")
        if any(r.operations.get(f"product {dtype}") for r in device.rates)
    }
    message = max(device.messages, key=lambda sent: sent.bytes, default=None)
    traffic = max(s.bytes / s.seconds for r in device.rates for s in r.operations["add float32"])
    return Device(
        gpu=name,
        arch="",
        peak_bf16_tflops=peaks["bfloat16"] / 1e12 if "bfloat16" in peaks else None,
        peak_fp16_tflops=peaks["float16"] / 1e12 if "float16" in peaks else None,
        peak_fp8_tflops=None,
        peak_fp4_tflops=None,
        peak_fp32_tflops=peaks["float32"] / 1e12,
        memory_gib=device.memory_gib,
        memory_gbyte_per_s=traffic / 1e9,
        link_gbyte_per_s=message.bytes / message.seconds / 1e9 if message else 1.0,
        network_gbit_per_s=10.0,
        gpus_per_node=MOST_RANKS,
        watts=None,
        verified="measured",
        measured=device,
    )


# --- a device of one's own

_TEXT = ("gpu", "arch")
_ALSO = ("peak_tflops", "like")


def from_json(path: Path) -> dict[str, Device]:
    """Return the devices that a JSON file describes, by name: one object, or a list of them.

    `like` names a known device whose figures stand where the file gives none; without it peak_tflops (16 bits, dense),
    memory_gib and memory_gbyte_per_s are needed.

    Raises: ConfigError for what is no JSON, a key that is unknown or missing, or a figure that cannot be.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}): write an object such as {_EXAMPLE}") from None
    items = content if isinstance(content, list) else [content]
    if not items or not all(isinstance(item, dict) for item in items):
        raise ConfigError(f"{path} describes no device: write an object such as {_EXAMPLE}")
    return {device.gpu: device for device in (describe(item, where=str(path)) for item in items)}


_EXAMPLE = '{"gpu": "mine", "peak_tflops": 100, "memory_gib": 24, "memory_gbyte_per_s": 900}'


def describe(values: Mapping[str, Any], *, where: str) -> Device:
    """Return the device that the user describes by name and figures. where: the file or flag, for messages.

    Raises: ConfigError for a key that is unknown or missing, or a figure that cannot be.
    """
    names = [field.name for field in fields(Device) if field.name not in ("verified", "measured")]
    for key in values:
        if key not in names and key not in _ALSO:
            allowed = ", ".join([*_ALSO, *names])
            raise ConfigError(f"{where}: {key!r} is unknown{did_you_mean(key, [*names, *_ALSO])}: use {allowed}")
    numbers = {key: _figure(key, value, where) for key, value in values.items() if key not in (*_TEXT, "like")}
    texts = {key: _name(key, value, where) for key, value in values.items() if key in (*_TEXT, "like")}
    base = find(texts.pop("like")) if "like" in texts else None
    if "peak_tflops" in numbers:
        peak = numbers.pop("peak_tflops")
        numbers = {"peak_bf16_tflops": peak, "peak_fp16_tflops": peak, **numbers}
    if base is not None:
        changes: dict[str, Any] = {**numbers, **texts, "verified": "own"}
        return replace(base, **changes)
    for key in ("memory_gib", "memory_gbyte_per_s"):
        if key not in numbers:
            raise ConfigError(f"{where}: {key} is missing: write an object such as {_EXAMPLE}")
    if not (numbers.get("peak_bf16_tflops") or numbers.get("peak_fp16_tflops")):
        raise ConfigError(f"{where}: peak_tflops is missing: write an object such as {_EXAMPLE}")
    defaults: dict[str, Any] = {
        "gpu": "own",
        "arch": "",
        "peak_bf16_tflops": None,
        "peak_fp16_tflops": None,
        "peak_fp8_tflops": None,
        "peak_fp4_tflops": None,
        "peak_fp32_tflops": None,
        "link_gbyte_per_s": 32.0,  # PCIe 4, 16 lanes
        "network_gbit_per_s": 100.0,
        "gpus_per_node": 8,
        "watts": None,
        "verified": "own",
    }
    return Device(**{**defaults, **numbers, **texts})


def _figure(key: str, value: Any, where: str) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LIMIT
    if not good or (key == "gpus_per_node" and value != int(value)):
        kind = "a whole number" if key == "gpus_per_node" else "a number"
        hint = meant(str(value), whole=key == "gpus_per_node")
        raise ConfigError(f"{where}: {key} is {value!r}{hint}: give {kind} above 0 and below {LIMIT:g}")
    return int(value) if key == "gpus_per_node" else float(value)


def _name(key: str, value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}: {key} is {value!r}: give a name in quotes")
    return value
