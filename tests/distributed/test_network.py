"""The network interface that gloo is given; tests/machines/ shows it on network namespaces."""

from __future__ import annotations

import socket

import pytest

from mnist_dist.distributed import network
from mnist_dist.distributed.network import find_interface, is_loopback, set_gloo_interface, source_address

INTERFACES = {"lo": {"127.0.0.1", "::1"}, "eth0": {"10.0.0.1", "fe80::1"}, "docker0": {"172.17.0.1"}}


def fake_machine(monkeypatch: pytest.MonkeyPatch, interfaces: dict[str, set[str]], routes: dict[str, str]) -> None:
    """Fake a machine with these interfaces, and these addresses of its own on the routes to these hosts."""
    monkeypatch.setattr(network, "interface_addresses", lambda: interfaces)
    found = {host: (socket.AF_INET, address) for host, address in routes.items()}
    monkeypatch.setattr(network, "source_address", lambda host, port: found.get(host))


def test_the_real_interfaces_of_this_machine() -> None:
    assert source_address("127.0.0.1", 1) == (socket.AF_INET, "127.0.0.1")
    assert "127.0.0.1" in network.interface_addresses()[find_interface("127.0.0.1", 1)]
    assert (source_address("nowhere.invalid", 1), find_interface("nowhere.invalid", 1)) == (None, "")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.1.1", True),
        ("::1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("n", False),
    ],
)
def test_is_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_the_interface_on_the_route_to_the_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_machine(monkeypatch, INTERFACES, {"n0": "10.0.0.1", "127.0.0.1": "127.0.0.1"})
    assert find_interface("n0", 1) == "eth0"
    assert find_interface("127.0.0.1", 1) == "lo"  # was asked for: the machines are processes of this one
    assert find_interface("n1", 1) == ""


def test_the_default_routes_interface_if_a_machine_resolves_itself_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_machine(monkeypatch, INTERFACES, {"n0": "127.0.1.1", "192.0.2.1": "10.0.0.1"})
    assert find_interface("n0", 1) == "eth0"


def test_without_a_default_route_the_only_external_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_machine(monkeypatch, INTERFACES, {"n0": "127.0.1.1"})
    assert find_interface("n0", 1) == ""
    fake_machine(monkeypatch, {name: INTERFACES[name] for name in ("lo", "eth0")}, {"n0": "127.0.1.1"})
    assert find_interface("n0", 1) == "eth0"


def test_gloo_socket_ifname_that_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_machine(monkeypatch, INTERFACES, {"n0": "10.0.0.1"})
    environment = {"GLOO_SOCKET_IFNAME": "ib0"}
    set_gloo_interface("n0:29500", environment)
    assert environment == {"GLOO_SOCKET_IFNAME": "ib0"}
    environment.clear()
    set_gloo_interface("n1:29500", environment)
    assert environment == {}
    set_gloo_interface("n0:29500", environment)
    assert environment == {"GLOO_SOCKET_IFNAME": "eth0"}
