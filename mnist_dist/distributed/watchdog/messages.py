"""TCP request and response between ranks: one JSON line each way.

A connection of our own, since the process group cannot carry it: by the time it is needed, a collective has failed.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
from dataclasses import dataclass
from typing import Any

from mnist_dist.distributed.network import is_loopback, source_address
from mnist_dist.distributed.topology import Topology
from mnist_dist.utils.errors import TrainingError

MAX_MESSAGE_BYTES = 1 << 20


@dataclass(frozen=True)
class PeerAddress:
    """Where a rank listens."""

    rank: int
    machine_rank: int
    hostname: str
    """For error messages."""
    address: str
    port: int
    token: str
    """A secret of this run's processes: requests without it are not answered."""


def listen(topology: Topology) -> tuple[socket.socket, PeerAddress]:
    """Listen on a free port; gives the non-blocking socket, and its address for the other ranks.

    The address is the one from which this machine reaches rank 0's. With all ranks on one machine, the socket is
    bound to that address alone.

    Raises:
        TrainingError: this machine has no such address.
    """
    host, _, port = topology.address.rpartition(":")
    if found := source_address(host, int(port)):
        family, address = found
        bound = (address if topology.machines == 1 else "", 0)
        with contextlib.suppress(OSError):
            listener = socket.create_server(bound, family=family, backlog=2 * topology.world_size + 16)
            listener.setblocking(False)
            free_port = int(listener.getsockname()[1])
            hostname, token = socket.gethostname(), secrets.token_hex(8)
            return listener, PeerAddress(topology.rank, topology.machine_rank, hostname, address, free_port, token)
    raise TrainingError(f"this machine has no address from which it reaches {topology.address}")


def connect(peer: PeerAddress, own: PeerAddress, topology: Topology, timeout: float) -> socket.socket:
    """Connect to another rank.

    A peer on another machine may have reported a loopback address, as Debian's 127.0.1.1: its machine resolves the
    rendezvous host to itself, so it is reached at that host. (It need not be rank 0's machine: under torchrun with
    c10d it is the one that serves the store.)

    Args:
        timeout: seconds.

    Raises:
        OSError: no connection; TimeoutError: not in time.
    """
    serves_rendezvous = is_loopback(peer.address) and own.machine_rank != peer.machine_rank
    address = topology.address.rpartition(":")[0] if serves_rendezvous else peer.address
    return socket.create_connection((address, peer.port), timeout=timeout)


def send(connection: socket.socket, message: Any) -> None:
    """Send one JSON line."""
    connection.sendall(json.dumps(message).encode() + b"\n")


def receive(connection: socket.socket) -> Any:
    """Receive one JSON line of at most MAX_MESSAGE_BYTES.

    Raises:
        ConnectionError: the other side closed the connection first.
        ValueError: not JSON.
    """
    with connection.makefile("rb") as file:
        line = file.readline(MAX_MESSAGE_BYTES)
    if not line.endswith(b"\n"):
        raise ConnectionResetError("the connection was closed in the middle of a message")
    return json.loads(line)
