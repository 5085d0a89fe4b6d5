"""The network interfaces of this machine, and the addresses that host names stand for."""

import socket
from collections.abc import Mapping

import psutil

from paralab.errors import WorldError


def interface_of(address: str) -> str:
    """Return the name of the network interface that has `address` (a name or a number), such as eth0.

    Raises: WorldError for a name that is unknown, and for 127.0.0.1 where it is not to be had.
    """
    _, (number, _) = resolve(address, 0)
    there = psutil.net_if_addrs()
    for name, addresses in there.items():
        if any(found.address.split("%")[0] == number for found in addresses):
            return name
    if number == "127.0.0.1":
        raise WorldError("no network interface has 127.0.0.1, as in a sandbox: type ip link set lo up, as root")
    return "lo"  # every other address of 127.0.0.0/8


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return the address family and the numeric address of a host. Raises: WorldError for an unknown one."""
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise WorldError(f"{host} is not known here ({error.strerror}): give an address that node 0 has") from error
    return family, (str(target[0]), int(target[1]))


def check_interface(environ: Mapping[str, str]) -> None:
    """Raise WorldError where GLOO_SOCKET_IFNAME names no network interface of this machine."""
    there = psutil.net_if_addrs()
    for name in filter(None, environ.get("GLOO_SOCKET_IFNAME", "").split(",")):
        if name not in there:
            raise WorldError(
                f"GLOO_SOCKET_IFNAME={name} is no network interface of this machine: name one of {', '.join(there)}, "
                "or type env -u GLOO_SOCKET_IFNAME before the command"
            )
