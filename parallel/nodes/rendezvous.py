"""The rendezvous of the nodes of a run: ports on one address only, and torch's rendezvous over them.

torch's own stores listen on every interface; those made here listen on the address they are given. Whoever reaches
it can still read and change what the nodes tell each other: nothing is encrypted and nobody is asked who they are.
"""

import errno
import os
import socket
import time
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

from paralab.errors import WorldError
from paralab.processes.interfaces import resolve

RENDEZVOUS = "paralab"  # the name under which torch's launcher finds it

_STORE_TIMEOUT = timedelta(seconds=60)


def host_store(address: str, port: int) -> dist.TCPStore:
    """Open a store that listens on one address. Raises: WorldError, as `listen` does."""
    listener = listen(address, port)
    number = listener.getsockname()[1]
    return dist.TCPStore(
        address,
        number,
        is_master=True,
        wait_for_workers=False,
        timeout=_STORE_TIMEOUT,
        master_listen_fd=listener.detach(),
    )


def join_store(host: str, port: int) -> dist.TCPStore:
    """Connect to the store of node 0, which is open already."""
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_STORE_TIMEOUT)


def register_rendezvous() -> str:
    """Make torch's launcher meet at the store of node 0; return the name of the rendezvous backend to give it."""

    def create(parameters: RendezvousParameters) -> "NodeRendezvous":
        host, _, port = parameters.endpoint.rpartition(":")
        store = join_store(host, int(port))
        return NodeRendezvous.from_backend(
            parameters.run_id,
            store,
            C10dRendezvousBackend(store, parameters.run_id),
            parameters.min_nodes,
            parameters.max_nodes,
            parameters.local_addr,
            RendezvousTimeout(
                join=timedelta(seconds=parameters.config["join_timeout"]),
                last_call=timedelta(seconds=parameters.config["last_call_timeout"]),
            ),
            keep_alive_interval=2,
            keep_alive_max_attempt=4,
        )

    # the base class then opens no store of its own, which would listen on every interface
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    rendezvous_handler_registry.register(RENDEZVOUS, create)
    return RENDEZVOUS


class NodeRendezvous(DynamicRendezvousHandler):
    """torch's dynamic rendezvous with a new store for the workers in every round, on the first node's address.

    torch 2.13 keeps the store of the first round (`pytorch/torch/distributed/elastic/rendezvous`), whose keys then
    mislead the workers that are started after a node has come or gone.
    """

    _workers_store: dist.TCPStore | None = None

    def get_backend(self) -> str:
        return RENDEZVOUS

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        found = super().next_rendezvous()
        assert found.bootstrap_store_info is not None
        address = found.bootstrap_store_info.master_addr
        if found.rank == 0:
            self._workers_store = host_store(address, 0)
            found.store.set("workers_port", str(self._workers_store.port))
        port = int(found.store.get("workers_port"))
        return RendezvousInfo(found.store, found.rank, found.world_size, RendezvousStoreInfo(address, port))


def listen(address: str, port: int) -> socket.socket:
    """Open a port on one address of this machine; port 0 takes a free one.

    Raises: WorldError when the port is taken (a free one is named) or the address belongs to another machine.
    """
    family, target = resolve(address, port)
    try:
        return socket.create_server(target, family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            with listen(address, 0) as free:
                number = free.getsockname()[1]
            raise WorldError(f"port {port} is taken: use --rendezvous {address}:{number} on every node") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise WorldError(
                f"{address} is not an address of this machine: name one of node 0, or give this machine another"
                " --node-rank"
            ) from error
        raise WorldError(f"cannot listen on {address}:{port}: {error.strerror}") from error


def wait_for_port(host: str, port: int, *, timeout_s: float) -> None:
    """Return when `host` accepts connections on `port`. Raises: WorldError after `timeout_s`."""
    _, target = resolve(host, port)
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(target, timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise WorldError(
                    f"node 0 has not opened {host}:{port} within {timeout_s:g} s ({error}): start it there with"
                    " --node-rank 0, or let the port through the firewall"
                ) from error
            time.sleep(0.2)


def address_towards(host: str, port: int) -> str:
    """Return the address of this machine that reaches `host`, by its routing table; sends nothing."""
    family, target = resolve(host, port)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        return probe.getsockname()[0]
