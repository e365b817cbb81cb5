"""By which of its addresses and network interfaces this machine reaches another one. Sends nothing."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import MutableMapping

import psutil

ELSEWHERE = "192.0.2.1", 9
"""An address that is on no network (RFC 5737): the way to it is the default route."""


def source(host: str, port: int) -> tuple[socket.AddressFamily, str] | None:
    """The family and this machine's own address with which it reaches a host; None if it does not."""
    with contextlib.suppress(OSError, UnicodeError):
        for family, _, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as route:
                route.connect(place)  # sends nothing
                return family, str(route.getsockname()[0])
    return None


def is_loopback(address: str) -> bool:
    """Whether an address, or a name for one, leads every machine to itself."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    return address == "localhost"


def interface(host: str, port: int) -> str:
    """The network interface by which this machine and the others of a run that meet at a host reach each other.

    A machine may find its own name at a loopback address, as Debian's 127.0.1.1: then the others reach it by the
    interface of its default route, or else by the only one that it has. Empty if it cannot be found out.
    """
    found = source(host, port)
    if found and is_loopback(found[1]) and not is_loopback(host):
        found = source(*ELSEWHERE)
        outer = [name for name, addresses in interface_addresses().items() if not any(map(is_loopback, addresses))]
        if not found and len(outer) == 1:
            return outer[0]
    return next((name for name, addresses in interface_addresses().items() if found and found[1] in addresses), "")


def interface_addresses() -> dict[str, set[str]]:
    """The addresses of each interface that has one."""
    kinds = socket.AF_INET, socket.AF_INET6
    listed = {
        name: {each.address.partition("%")[0] for each in addresses if each.family in kinds}
        for name, addresses in psutil.net_if_addrs().items()
    }
    return {name: addresses for name, addresses in listed.items() if addresses}


def set_gloo_interface(address: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let gloo tell other machines an address that leads here; a choice of the user's stays.

    gloo would tell them the address that this machine's own name has here, which is often a loopback one.

    Args:
        address: HOST:PORT where the processes meet.
    """
    host, _, port = address.rpartition(":")
    if not environment.get("GLOO_SOCKET_IFNAME") and (name := interface(host, int(port))):
        environment["GLOO_SOCKET_IFNAME"] = name
