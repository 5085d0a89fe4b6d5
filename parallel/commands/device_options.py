"""The options with which `paralab plan` and `paralab predict` are told of devices."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paralab.errors import ConfigError
from paralab.options.arguments import Parser
from paralab.planning import hardware
from paralab.planning.hardware import DEFAULT_GPU, Device

FIGURES = {
    "peak_tflops": "Dense peak in 16 bits, TFLOP/s, of a device of your own, or of --gpu if it differs",
    "memory_gib": "Memory of that device that a program can use, GiB",
    "memory_gbyte_per_s": "Bandwidth of that memory, GB/s",
    "link_gbyte_per_s": "Link of one device inside a node, one direction, GB/s",
    "network_gbit_per_s": "Network of one device between nodes, one direction, Gbit/s",
}
_NEEDED = ("peak_tflops", "memory_gib", "memory_gbyte_per_s")


class DeviceParser(Parser):
    """A parser in which figures of a datasheet describe the device: they become one more `--device`, which is taken."""

    def add_devices(self, *, gpu: str, device: str) -> None:
        """Add --gpu and --device with their help, and the options of the figures."""
        self.add_argument("--gpu", metavar="NAME", default=DEFAULT_GPU, help=f"{gpu} (default: {DEFAULT_GPU})")
        self.add_argument("--device", metavar="FILE", action="append", help=device)
        for name, meaning in FIGURES.items():
            self.add_argument(f"--{name.replace('_', '-')}", metavar="N", help=meaning)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the options. Raises: UsageError; ConfigError for too few figures of a device that is not known."""
        options = super().parse_args(args, namespace)
        given = {name: value for name in FIGURES if (value := getattr(options, name)) is not None}
        if not given:
            return options
        named = any(word == "--gpu" or word.startswith("--gpu=") for word in args)
        if named and (known := hardware.is_known(options.gpu)):
            given, name = {"like": known, **given}, f"{known} (changed)"
        elif missing := [name for name in _NEEDED if name not in given]:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
            first = f"--{next(iter(given)).replace('_', '-')}"
            raise ConfigError(f"{first} without {flags}: give all figures of the device, or --gpu with one it is like")
        else:
            name = options.gpu if named else "own"
        words = ",".join(f"{key}={value}" for key, value in {"gpu": name, **given}.items())
        options.device, options.gpu = [*(options.device or []), words], name
        return options


def devices(words: Sequence[str]) -> dict[str, Device]:
    """Return the devices that `--device` describes, by name. Raises: ConfigError for what describes none."""
    found: dict[str, Device] = {}
    for word in words:
        if "=" in word and not Path(word).exists():
            pairs = (part.partition("=") for part in word.split(","))
            values = {key.strip(): _value(text.strip()) for key, _, text in pairs}
            device = hardware.describe(values, where="--device")
            found[device.gpu] = device
        elif not Path(word).is_file():
            raise ConfigError(f"--device {word}: there is no such file: give a JSON file, or name=value,name=value")
        else:
            found |= hardware.from_json(Path(word))
    return found


def _value(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text
