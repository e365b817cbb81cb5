"""Find the address and the network interface by which this machine reaches another one. Sends nothing."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import MutableMapping

import psutil

TEST_NET = "192.0.2.1", 9
"""An address that no machine has (RFC 5737), so that the route to it is the default route."""


def source_address(host: str, port: int) -> tuple[socket.AddressFamily, str] | None:
    """Address family and address of this machine on the route to a host; None if there is no route."""
    with contextlib.suppress(OSError, UnicodeError):
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as route:
                route.connect(address)  # UDP: chooses the route, sends nothing
                return family, str(route.getsockname()[0])
    return None


def is_loopback(address: str) -> bool:
    """Whether an address, or the name `localhost`, leads every machine to itself."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    return address == "localhost"


def find_interface(host: str, port: int) -> str:
    """The network interface by which this machine reaches the other machines of a run whose rendezvous is at `host`.

    A machine may resolve its own name to a loopback address, as Debian's 127.0.1.1. Then it is the interface of the
    default route or, without one, the only one that is not loopback. Empty if neither exists.
    """
    found = source_address(host, port)
    if found and is_loopback(found[1]) and not is_loopback(host):
        found = source_address(*TEST_NET)
        external = [name for name, addresses in interface_addresses().items() if not any(map(is_loopback, addresses))]
        if not found and len(external) == 1:
            return external[0]
    return next((name for name, addresses in interface_addresses().items() if found and found[1] in addresses), "")


def interface_addresses() -> dict[str, set[str]]:
    """IPv4 and IPv6 addresses of each interface that has one, by interface name."""
    families = socket.AF_INET, socket.AF_INET6
    listed = {
        name: {each.address.partition("%")[0] for each in addresses if each.family in families}
        for name, addresses in psutil.net_if_addrs().items()
    }
    return {name: addresses for name, addresses in listed.items() if addresses}


def set_gloo_interface(address: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set GLOO_SOCKET_IFNAME to the interface that leads to the rendezvous, unless the user has set it.

    By itself, gloo tells other machines the address to which this machine resolves its own name: often a loopback one.

    Args:
        address: HOST:PORT of the rendezvous.
    """
    host, _, port = address.rpartition(":")
    if not environment.get("GLOO_SOCKET_IFNAME") and (name := find_interface(host, int(port))):
        environment["GLOO_SOCKET_IFNAME"] = name
