"""Telemetry against a real process, a made-up /sys, and a stand-in for the NVML library at its C boundary."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from paralab.measure import telemetry
from paralab.measure.telemetry import Sampler, rapl_joules, read_rapl, together

# Two devices. The second: power 100, 110, 120 ... W by call, 5 J a reading, a power cap; it knows no clock.
FAKE_NVML = r"""
#include <string.h>
typedef struct { unsigned gpu, memory; } Rates;
typedef struct { unsigned long long total, free, used; } Memory;
static char devices[2];
static unsigned power_mw = 90000;
static unsigned long long energy_mj = 0;
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "stand-in"; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  if (!strcmp(uuid, "GPU-a")) *device = &devices[0];
  else if (!strcmp(uuid, "GPU-b")) *device = &devices[1];
  else return 6; /* NVML_ERROR_NOT_FOUND */
  return 0;
}
int nvmlDeviceGetUtilizationRates(void *d, Rates *r) { r->gpu = d == &devices[1] ? 75 : 1; return 0; }
int nvmlDeviceGetMemoryInfo(void *d, Memory *m) { m->used = d == &devices[1] ? 7ULL << 30 : 1; return 0; }
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { *mw = power_mw += 10000; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *d, unsigned long long *mj) { *mj = energy_mj += 5000; return 0; }
int nvmlDeviceGetClockInfo(void *d, unsigned type, unsigned *mhz) { return 3; /* NVML_ERROR_NOT_SUPPORTED */ }
int nvmlDeviceGetTemperature(void *d, unsigned sensor, unsigned *c) { *c = 61; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *r) { *r = 0x1 | 0x4 | 0x40; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *mw) { *mw = 350000; return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { strncpy(text, "999.1", length); return 0; }
"""

PROBE = """
import json, sys, time
from dataclasses import asdict
from paralab.measure.nvml import NvmlDevice
from paralab.measure.telemetry import Sampler
sampler = Sampler(gpu_uuid="GPU-b", interval_s=0.02)
sampler.start_window()
time.sleep(0.2)
window = asdict(sampler.stop_window())
device = NvmlDevice.open("GPU-b")
known = {"limit": device.power_limit_w(), "driver": device.driver_version(), "other": NvmlDevice.open("GPU-c") is None}
print(json.dumps(window | known | {"torch": "torch" in sys.modules}))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a process sees whose NVML is the stand-in."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler or sys.platform != "linux":
        pytest.skip("needs a C compiler and Linux to make a stand-in for libnvidia-ml.so.1")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(FAKE_NVML)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "nvml.c"], check=True, timeout=60)
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


def test_gpu_is_found_by_uuid(seen: dict) -> None:
    assert seen["gpu_utilisation_mean_share"] == seen["gpu_utilisation_max_share"] == 0.75
    assert seen["gpu_used_max_bytes"] == 7 << 30
    assert seen["other"]  # no device has that UUID


def test_gpu_mean_and_maximum_over_the_window(seen: dict) -> None:
    n = seen["samples"]
    assert n > 4
    assert seen["gpu_power_max_w"] == pytest.approx(90 + 10 * n)
    assert seen["gpu_power_mean_w"] == pytest.approx(95 + 5 * n)
    assert seen["gpu_temperature_mean_c"] == 61
    assert seen["gpu_energy_j"] == pytest.approx(5)
    assert seen["gpu_throttle_reasons"] == "hardware thermal; power cap"  # idling is none


def test_gpu_facts_and_what_it_does_not_know(seen: dict) -> None:
    assert seen["gpu_clock_mean_mhz"] is None
    assert (seen["limit"], seen["driver"]) == (350, "999.1")
    assert not seen["torch"]


def test_cpu_run_leaves_gpu_fields_empty_and_agrees_with_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the workers of other tests are children of this process, and do not stand still
    monkeypatch.setattr(psutil.Process, "children", lambda process, recursive=False: [])
    sampler = Sampler(interval_s=0.05, powercap=tmp_path)
    cores = sampler._cores
    around_s = -time.process_time()
    sampler.start_window()
    wall, inside_s = time.perf_counter(), -time.process_time()
    with open("/dev/zero", "rb", buffering=0) as zeros:  # most of it is the kernel's time, which counts as well
        while time.perf_counter() - wall < 0.4:
            zeros.read(1 << 20)
    inside_s += time.process_time()
    got = sampler.stop_window()
    around_s += time.process_time()
    assert {v for k, v in vars(got).items() if k.startswith("gpu")} == {None}
    assert got.cpu_energy_j is None
    # The kernel counts in ticks of 10 ms, at both ends.
    assert inside_s - 0.06 <= got.cpu_utilisation_mean_share * cores * got.window_s <= around_s + 0.06
    assert got.cpu_utilisation_max_share >= got.cpu_utilisation_mean_share
    assert got.process_rss_max_bytes >= got.process_rss_mean_bytes > 2**20
    # One tenth as many samples at the default interval.
    assert got.sampler_share / 10 < 0.01


def test_windows_do_not_nest(tmp_path: Path) -> None:
    sampler = Sampler(powercap=tmp_path)
    with pytest.raises(RuntimeError, match="start_window first"):
        sampler.stop_window()
    sampler.start_window()
    with pytest.raises(RuntimeError, match="stop_window first"):
        sampler.start_window()
    sampler.stop_window()


def _socket(folder: Path, name: str, energy_uj: int) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / name / "max_energy_range_uj").write_text("1000000000\n")


def test_rapl_adds_sockets_and_wraps(tmp_path: Path) -> None:
    _socket(tmp_path, "intel-rapl:0", 5_000_000)
    _socket(tmp_path, "intel-rapl:0:0", 1)  # a part of socket 0
    _socket(tmp_path, "intel-rapl:1", 999_000_000)
    before = read_rapl(tmp_path)
    _socket(tmp_path, "intel-rapl:0", 8_000_000)
    _socket(tmp_path, "intel-rapl:0:0", 7_000_000)
    _socket(tmp_path, "intel-rapl:1", 1_000_000)
    assert rapl_joules(before, read_rapl(tmp_path)) == pytest.approx(3 + 2)
    assert rapl_joules({}, {}) is None


def sample(time_s: float, cpu_s: float, power_w: float, reasons: frozenset[str] | None = None) -> telemetry._Sample:
    return telemetry._Sample(time_s, cpu_s, int(time_s * 1000), gpu_power_w=power_w, throttles=reasons)


def test_two_windows_together_are_the_window_over_both() -> None:
    hot = frozenset({"power cap"})
    samples = [sample(0.0, 0.0, 100.0), sample(1.0, 0.5, 300.0, hot), sample(3.0, 2.5, 300.0), sample(3.05, 2.6, 100.0)]
    one, two, three = (
        telemetry._summarise(part, cores=1, busy_s=0.1, gpu_energy_j=energy_j, cpu_energy_j=None)
        for part, energy_j in ((samples[:2], 5.0), (samples[1:3], 7.0), (samples[2:], 1.0))
    )
    both = together(one, two)
    assert (both.window_s, both.samples, both.gpu_energy_j, both.cpu_energy_j) == (3.0, 4, 12.0, None)
    assert both.cpu_utilisation_mean_share == pytest.approx(2.5 / 3), "the longer one counts more"
    assert both.cpu_utilisation_max_share == 1.0
    assert both.gpu_power_mean_w == pytest.approx((200.0 + 2 * 300.0) / 3) and both.gpu_power_max_w == 300.0
    assert both.sampler_share == pytest.approx(0.2 / 3)
    assert both.gpu_throttle_reasons == "power cap" and both.gpu_clock_mean_mhz is None
    assert three.cpu_utilisation_max_share == pytest.approx(2.0)  # 100 ms of work in 50 ms: ticks of the kernel
    whole = together(both, three)
    assert whole.cpu_utilisation_mean_share == pytest.approx(2.6 / 3.05)
    assert whole.cpu_utilisation_max_share == 1.0, "the window is too short to say"
    unknown = replace(two, gpu_energy_j=None, gpu_power_mean_w=None)
    assert (together(one, unknown).gpu_energy_j, together(one, unknown).gpu_power_mean_w) == (None, 200.0)


def test_samples_of_nothing_count_and_loads_are_shares_of_the_cores() -> None:
    samples = [sample(0.0, 0.0, 0.0), sample(1.0, 2.0, 300.0), sample(2.0, 2.0, 0.0)]
    found = telemetry._summarise(samples, cores=4, busy_s=0.0, gpu_energy_j=None, cpu_energy_j=None)
    assert (found.gpu_power_mean_w, found.gpu_power_max_w) == (100.0, 300.0)
    assert (found.cpu_utilisation_mean_share, found.cpu_utilisation_max_share) == (0.25, 0.5)
    assert (found.process_rss_mean_bytes, found.process_rss_max_bytes) == (1000, 2000)
    samples = [sample(0.0, 0.0, 0.0), sample(1.0, 0.5, 0.0), sample(1.05, 0.6, 0.0)]
    found = telemetry._summarise(samples, cores=1, busy_s=0.0, gpu_energy_j=None, cpu_energy_j=None)
    assert found.cpu_utilisation_max_share == found.cpu_utilisation_mean_share == pytest.approx(0.6 / 1.05)


def test_a_lap_ends_one_window_and_begins_the_next(tmp_path: Path) -> None:
    sampler = Sampler(interval_s=0.05, powercap=tmp_path)
    with pytest.raises(RuntimeError, match="start_window first"):
        sampler.lap()
    sampler.start_window()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    busy = sampler.lap()
    time.sleep(0.3)
    idle = sampler.lap()
    rest = sampler.stop_window()
    assert busy.cpu_utilisation_mean_share and idle.cpu_utilisation_mean_share is not None
    assert busy.cpu_utilisation_mean_share * busy.window_s > 3 * idle.cpu_utilisation_mean_share * idle.window_s
    assert idle.window_s >= 0.3 and rest.window_s < busy.window_s + idle.window_s
