"""Query one NVIDIA device through NVML. What the device cannot report is None."""

from typing import Any

# Why a GPU runs below its clocks (NVML API reference, nvmlClocksEventReasons). Idling is not throttling.
_THROTTLES = {
    "SwPowerCap": "power cap",
    "HwSlowdown": "hardware slowdown",
    "SwThermalSlowdown": "software thermal",
    "HwThermalSlowdown": "hardware thermal",
    "HwPowerBrakeSlowdown": "power brake",
}


def cuda_uuid(index: int) -> str:
    """Return the UUID of a CUDA device of this process, as NVML writes it.

    NVML's own numbers ignore CUDA_VISIBLE_DEVICES; UUIDs do not change with it.
    """
    import torch

    uuid = str(torch.cuda.get_device_properties(index).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


class NvmlDevice:
    """A handle to one device. Open it with `NvmlDevice.open(uuid)`."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def open(cls, uuid: str) -> "NvmlDevice | None":
        """Return the device, or None without nvidia-ml-py, without a driver, or when no device has that UUID."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid.encode()))
        except pynvml.NVMLError:
            return None

    def _ask(self, name: str, *args: Any) -> Any:
        try:
            return getattr(self._nvml, name)(*args)
        except self._nvml.NVMLError:  # not supported here, or the device is gone
            return None

    def _scaled(self, name: str, *args: Any, scale: float) -> float | None:
        value = self._ask(name, self._handle, *args)
        return None if value is None else value * scale

    def utilisation_share(self) -> float | None:
        """Return the share of the driver's last sampling period in which a kernel was running."""
        rates = self._ask("nvmlDeviceGetUtilizationRates", self._handle)
        return None if rates is None else rates.gpu / 100

    def used_bytes(self) -> int | None:
        """Return the memory in use by every process on the device."""
        memory = self._ask("nvmlDeviceGetMemoryInfo", self._handle)
        return None if memory is None else int(memory.used)

    def power_w(self) -> float | None:
        return self._scaled("nvmlDeviceGetPowerUsage", scale=1e-3)

    def power_limit_w(self) -> float | None:
        return self._scaled("nvmlDeviceGetEnforcedPowerLimit", scale=1e-3)

    def energy_j(self) -> float | None:
        """Return joules since the driver was loaded (Volta and newer)."""
        return self._scaled("nvmlDeviceGetTotalEnergyConsumption", scale=1e-3)

    def clock_mhz(self) -> float | None:
        """Return the clock of the streaming multiprocessors."""
        return self._scaled("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM, scale=1.0)

    def temperature_c(self) -> float | None:
        return self._scaled("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU, scale=1.0)

    def throttle_reasons(self) -> frozenset[str] | None:
        """Return why the clocks are held down now; empty when they are not."""
        bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", self._handle)
        if bits is None:
            return None
        flags = {words: getattr(self._nvml, f"nvmlClocksThrottleReason{name}") for name, words in _THROTTLES.items()}
        return frozenset(words for words, flag in flags.items() if bits & flag)

    def driver_version(self) -> str | None:
        return self._ask("nvmlSystemGetDriverVersion")
