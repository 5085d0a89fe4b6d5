"""A device as `paralab calibrate` measured it: seconds of single operations, of collectives and of messages.

The file is JSON with units in its names. Reading is strict: what is not such a file is refused in one line.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paralab.axes.axis import Software
from paralab.console.inputs import read_text
from paralab.errors import ConfigError

SIZES = {"product": 3, "convolution": 4, "attention": 5}  # in the shape of kinds whose speed depends on it
FORMAT = "paralab measured device, version 2"
_AGAIN = "measure it with paralab calibrate --out FILE.json"


@dataclass(frozen=True)
class Sample:
    """One measured operation. shape, flops, bytes: as `measured.operations.Operation` has them."""

    shape: tuple[int, ...]
    flops: float
    bytes: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Rates:
    """What a process reaches with so many threads, while `processes` of them do the same.

    operations: by "kind dtype". forward_s, backward_s: what Python, modules and autograd add to an operation.
    tensor_s: what the update takes for each parameter, however small it is.
    """

    threads: int
    processes: int
    forward_s: float
    backward_s: float
    tensor_s: float
    operations: Mapping[str, tuple[Sample, ...]]


@dataclass(frozen=True)
class Sent:
    """What it takes to send so many bytes: in an all-reduce over all ranks, or in a message where there are two."""

    ranks: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class MeasuredDevice:
    """A device and the links between its processes.

    kind: "cpu", whose processes share `cores`, or "cuda", one GPU for each process. memory_gib: of the machine, or of
    one GPU. measured_s: how long measuring took. others_cores: that other programs took meanwhile, None where unknown.
    rates: with fewer threads first. software: seconds of what axes have software do on the host; empty where this was
    not measured, for want of a second process.
    """

    name: str
    kind: str
    cores: int
    memory_gib: float
    torch: str
    date: str
    measured_s: float
    others_cores: float | None
    rates: tuple[Rates, ...]
    all_reduces: tuple[Sent, ...]
    messages: tuple[Sent, ...]
    software: Mapping[str, float]

    def rates_of(self, ranks: int) -> Rates:
        """Return the rates that each of so many processes of one machine has. More than cores share those of one."""
        threads = max(1, self.cores // ranks) if self.kind == "cpu" else 1
        return max((r for r in self.rates if r.threads <= threads), key=lambda r: r.threads, default=self.rates[0])


def is_measured(name: str) -> bool:
    """Return whether a name of a GPU is rather a file of a device that was measured."""
    return name.endswith(".json")


def write(device: MeasuredDevice) -> bytes:
    """Return the content of a file, a sample a line."""
    content = {
        "format": FORMAT,
        "about": "Seconds, bytes, FLOPs (floating-point operations) and GiB (2^30 bytes). An operation is "
        "[shape, flops, bytes, seconds].",
        **asdict(device),
    }
    for rates in content["rates"]:
        rates["operations"] = {
            name: [list(sample.values()) for sample in samples] for name, samples in rates["operations"].items()
        }
    return (_short(json.dumps(content, indent=1)) + "\n").encode()


def _short(text: str) -> str:
    """Return JSON with innermost lists on one line."""
    lines: list[str] = []
    for line in text.split("\n"):
        inner = line.strip()
        depth = len(line) - len(line.lstrip())
        if lines and (depth > 5 or (depth == 5 and inner[0] == "]")):
            lines[-1] += inner + (" " if inner.endswith(",") and depth > 5 else "")
        else:
            lines.append(line)
    return "\n".join(line.rstrip() for line in lines)


def read(path: Path) -> MeasuredDevice:
    """Return the device of a file. Raises: ConfigError where there is none, or it is no such file."""
    try:
        content = json.loads(read_text(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: {_AGAIN}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is not JSON: {_AGAIN}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(f"{path} is no measured device (its format is not {FORMAT!r}): {_AGAIN}")
    try:
        return _device({name: value for name, value in content.items() if name not in ("format", "about")})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({' '.join(str(error).split())}): {_AGAIN}") from None


def _device(content: Mapping[str, Any]) -> MeasuredDevice:
    """Return the device that JSON describes. Raises: TypeError, ValueError or KeyError for what cannot be."""
    rates = tuple(sorted((_rates(one) for one in content["rates"]), key=lambda r: r.threads))
    sent = {name: tuple(_sent(name, one) for one in content[name]) for name in ("all_reduces", "messages")}
    software = {str(name): _positive(seconds) for name, seconds in content["software"].items()}
    if lacking := [name for name in Software if software and name not in software]:
        raise ValueError(f"software lacks {lacking[0]}, as in a file of an older version")
    device = MeasuredDevice(**{**_checked(content), "rates": rates, **sent, "software": software})
    if device.kind not in ("cpu", "cuda") or not rates:
        raise ValueError(f"kind {device.kind!r} with {len(rates)} rates")
    return device


def _rates(content: Mapping[str, Any]) -> Rates:
    operations = {
        str(name): tuple(_sample(str(name), *sample) for sample in samples)
        for name, samples in content["operations"].items()
    }
    if "add float32" not in operations or "product float32" not in operations:
        raise ValueError("operations lack add float32 or product float32")
    return Rates(**{**_checked(content), "operations": operations})


def _sent(name: str, content: Mapping[str, Any]) -> Sent:
    sent = Sent(**_checked(content))
    if not sent.seconds or not sent.bytes:
        raise ValueError(f"{name} of {sent.bytes} bytes in {sent.seconds} seconds")
    return sent


def _sample(name: str, shape: Sequence[int], flops: float, bytes_: int, seconds: float) -> Sample:
    """Return a sample. Raises: TypeError or ValueError for what is none."""
    sizes = SIZES.get(name.split()[0].removesuffix("_backward"), 0)
    if len(shape) != sizes or _positive(seconds) == 0:
        raise ValueError(f"{name} with shape {list(shape)} and seconds {seconds}")
    return Sample(tuple(map(int, shape)), _positive(flops), _positive(bytes_), seconds)


def _checked(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the same. Raises: ValueError for a number that is negative or not finite."""
    for name, value in content.items():
        if isinstance(value, int | float):
            try:
                _positive(value)
            except ValueError:
                raise ValueError(f"{name} is {value}") from None
    return content


def _positive(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is not a number of 0 or more")
    return value


def between(points: Sequence[tuple[float, float]], size: float) -> float:
    """Return seconds of a size, between measured (size, seconds): straight lines in logarithms.

    Above the largest one it takes proportionally longer; below the smallest one it takes as long as that.
    """
    points = sorted(points)
    if size <= points[0][0]:
        return points[0][1]
    if size >= points[-1][0]:
        return points[-1][1] * size / points[-1][0]
    right = next(i for i, (at, _) in enumerate(points) if at >= size)
    (a, first), (b, second) = points[right - 1], points[right]
    share = (math.log(size) - math.log(a)) / (math.log(b) - math.log(a))
    return first ** (1 - share) * second**share
