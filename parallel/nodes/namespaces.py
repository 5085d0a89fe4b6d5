"""Linux namespaces: which command opens them here, and what is missing where none does."""

import os
import shutil
import subprocess
import sys

from paralab.errors import UsageError

_TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}

_NAMESPACES = ("--net", "--pid", "--fork", "--kill-child", "--mount-proc")
# where ip and tc are, and not on the PATH of every user
_SYSTEM_FOLDERS = "/usr/sbin:/sbin"
# one of each thing that a simulated cluster makes, in namespaces that end with the attempt
_ATTEMPT = (
    "ip link add attempt0 type bridge && ip link add attempt1 type veth peer name attempt2"
    " && tc qdisc add dev attempt1 root tbf rate 1mbit burst 16kb latency 50ms"
)


def with_system_folders() -> dict[str, str]:
    """Return the environment of this process, with the folders of ip and tc on its PATH."""
    return os.environ | {"PATH": f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_FOLDERS}"}


def permitted_unshare(environment: dict[str, str]) -> list[str]:
    """Return the command that opens the namespaces, as root or as the user that this process is.

    Raises: UsageError that says which tool or which right is missing, and how to get it.
    """
    missing = sorted({package for tool, package in _TOOLS.items() if not shutil.which(tool, path=environment["PATH"])})
    if sys.platform != "linux":
        raise UsageError(f"paralab cluster needs Linux, this is {sys.platform}: run it in a Linux virtual machine")
    if missing:
        raise UsageError(f"tools are missing: apt-get install {' '.join(missing)} (Fedora: also iproute-tc)")
    for user in ((), ("--user", "--map-root-user")):
        unshare = ["unshare", *user, *_NAMESPACES]
        attempt = subprocess.run([*unshare, "sh", "-c", _ATTEMPT], env=environment, capture_output=True, text=True)
        if attempt.returncode == 0:
            return unshare
    reason = " ".join(attempt.stderr.split())
    raise UsageError(
        f"this process may not make network namespaces ({reason}): run as root, or allow users to:"
        " sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu) or kernel.unprivileged_userns_clone=1"
        " (Debian); in a container: docker run --privileged"
    )
