"""Facts about the machine and the software that made a result. Unknown is None."""

import hashlib
import os
import platform
import socket
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from paralab.measure.nvml import NvmlDevice, cuda_uuid
from paralab.nodes.simulated import LINK
from paralab.processes.allowed import cores_allowed

_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The environment columns of a `RunRecord`, under the same names."""

    git_commit: str | None
    git_dirty: bool | None
    paralab_version: str | None
    python_version: str
    torch_version: str | None
    deepspeed_version: str | None
    accelerate_version: str | None
    transformers_version: str | None
    cuda_version: str | None
    nccl_version: str | None
    driver_version: str | None
    gpu_name: str | None
    gpu_count: int | None  # visible to this process; None on a machine without
    gpu_power_limit_w: float | None
    cpu_model: str | None
    cores_allowed: float
    link_mbit_per_s: float | None  # of each node to the others, where `paralab cluster` shaped it
    threads: int  # torch's, of this process
    host_hash: str

    @classmethod
    def read(cls, device_index: int = 0) -> "Environment":
        """Look everything up; takes some milliseconds and imports torch, but none of the engines."""
        import torch

        commit, dirty = repository_state()
        cuda = torch.cuda.is_available()
        nvml = NvmlDevice.open(cuda_uuid(device_index)) if cuda else None
        return cls(
            git_commit=commit,
            git_dirty=dirty,
            paralab_version=_version("paralab"),
            python_version=platform.python_version(),
            torch_version=str(torch.__version__),  # with its build, such as +cu130, which the package does not name
            deepspeed_version=_version("deepspeed"),
            accelerate_version=_version("accelerate"),
            transformers_version=_version("transformers"),
            cuda_version=torch.version.cuda,
            nccl_version=".".join(map(str, torch.cuda.nccl.version())) if cuda and torch.version.cuda else None,
            driver_version=nvml.driver_version() if nvml else None,
            gpu_name=torch.cuda.get_device_name(device_index) if cuda else None,
            gpu_count=torch.cuda.device_count() if cuda else None,
            gpu_power_limit_w=nvml.power_limit_w() if nvml else None,
            cpu_model=cpu_model(),
            cores_allowed=cores_allowed(),
            link_mbit_per_s=float(os.environ[LINK]) if LINK in os.environ else None,
            threads=torch.get_num_threads(),
            host_hash=hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12],
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def repository_state() -> tuple[str | None, bool | None]:
    """Return the commit of the code that runs and whether tracked files differ from it; (None, None) when installed."""
    return _git(_REPOSITORY)


def _git(folder: Path) -> tuple[str | None, bool | None]:
    """Return the commit of a checkout and whether tracked files differ from it; (None, None) when installed."""
    if not (folder / ".git").exists():  # else git would answer for a repository further up
        return None, None
    commit = _run("git", "-C", str(folder), "rev-parse", "HEAD")
    status = _run("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    if not commit or status is None:
        return None, None
    return commit, bool(status)


def _run(*command: str) -> str | None:
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.processor() or None
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or None)
