"""Where each rank can be asked something, over connections of our own: one JSON line there, one back."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
from dataclasses import dataclass
from typing import Any

from mnist_dist.distributed.network import is_loopback, source
from mnist_dist.distributed.topology import Topology
from mnist_dist.utils.errors import TrainingError

MESSAGE_BYTES = 1 << 20


@dataclass(frozen=True)
class PeerAddress:
    """Where a rank listens."""

    rank: int
    machine: int
    host: str
    """The machine's name, for people."""
    address: str
    port: int
    token: str
    """What a caller must know: nobody but this run's processes is answered."""


def listen(topology: Topology) -> tuple[socket.socket, PeerAddress]:
    """Listen on a port that the system chooses; gives the socket, which never blocks, and what the others must know.

    The address is the one with which this machine reaches rank 0's. Where all processes are on one machine, no other
    address is listened on.

    Raises:
        TrainingError: this machine has no such address.
    """
    host, _, port = topology.address.rpartition(":")
    if found := source(host, int(port)):
        family, address = found
        bound = (address if topology.machines == 1 else "", 0)
        with contextlib.suppress(OSError):
            listener = socket.create_server(bound, family=family, backlog=2 * topology.world_size + 16)
            listener.setblocking(False)
            free_port = int(listener.getsockname()[1])
            name, token = socket.gethostname(), secrets.token_hex(8)
            return listener, PeerAddress(topology.rank, topology.machine, name, address, free_port, token)
    raise TrainingError(f"this machine has no address from which it reaches {topology.address}")


def connect(peer: PeerAddress, own: PeerAddress, topology: Topology, seconds: float) -> socket.socket:
    """A connection to another rank.

    A machine that finds the main address at a loopback one, as Debian's 127.0.1.1, is where that leads from every
    other machine. It need not be rank 0's: under torchrun with c10d it is where the store is.

    Raises:
        OSError: there is none; TimeoutError: not in time.
    """
    is_main_address = is_loopback(peer.address) and own.machine != peer.machine
    address = topology.address.rpartition(":")[0] if is_main_address else peer.address
    return socket.create_connection((address, peer.port), timeout=seconds)


def send(connection: socket.socket, message: Any) -> None:
    """Send one JSON line."""
    connection.sendall(json.dumps(message).encode() + b"\n")


def receive(connection: socket.socket) -> Any:
    """Receive one JSON line.

    Raises:
        ConnectionError: the other side ended before.
        ValueError: it is not JSON.
    """
    with connection.makefile("rb") as file:
        line = file.readline(MESSAGE_BYTES)
    if not line.endswith(b"\n"):
        raise ConnectionResetError("ended in the middle of a message")
    return json.loads(line)
