"""Where each rank can be asked something, over connections of our own: one JSON line there, one back."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
from dataclasses import dataclass
from typing import Any

from mnist_dist.errors import TrainingError
from mnist_dist.topology import Topology

MESSAGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Seat:
    """Where a rank listens."""

    rank: int
    machine: int
    host: str
    """The machine's name, for people."""
    address: str
    port: int
    token: str
    """What a caller must know: nobody but this run's processes is answered."""


def take_seat(topology: Topology) -> tuple[socket.socket, Seat]:
    """Listen on a port that the system chooses; gives the socket, which never blocks, and what the others must know.

    The address is the one with which this machine reaches rank 0's. Where all processes are on one machine, no other
    address is listened on.

    Raises:
        TrainingError: this machine has no such address.
    """
    host, _, port = topology.address.rpartition(":")
    with contextlib.suppress(OSError):
        for family, _, _, _, meeting in socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as route:
                route.connect(meeting)  # sends nothing
                address = str(route.getsockname()[0])
                bound = (address if topology.machines == 1 else "", 0)
                listener = socket.create_server(bound, family=family, backlog=2 * topology.world_size + 16)
                listener.setblocking(False)
                free_port = int(listener.getsockname()[1])
                name, token = socket.gethostname(), secrets.token_hex(8)
                return listener, Seat(topology.rank, topology.machine, name, address, free_port, token)
    raise TrainingError(f"this machine has no address from which it reaches {topology.address}")


def connect(seat: Seat, own: Seat, topology: Topology, seconds: float) -> socket.socket:
    """A connection to another rank.

    The name of rank 0's machine leads there from every other machine, also where it calls itself something else, as
    Debian's 127.0.1.1.

    Raises:
        OSError: there is none; TimeoutError: not in time.
    """
    of_first_machine = seat.machine == 0 and own.machine != 0
    address = topology.address.rpartition(":")[0] if of_first_machine else seat.address
    return socket.create_connection((address, seat.port), timeout=seconds)


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
