"""By which interface a machine is reached; tests/machines/ shows it on real ones."""

from __future__ import annotations

import socket

import pytest

from mnist_dist.distributed import network
from mnist_dist.distributed.network import interface, is_loopback, set_gloo_interface, source

INTERFACES = {"lo": {"127.0.0.1", "::1"}, "eth0": {"10.0.0.1", "fe80::1"}, "docker0": {"172.17.0.1"}}


def machine(monkeypatch: pytest.MonkeyPatch, interfaces: dict[str, set[str]], ways: dict[str, str]) -> None:
    """Pretend a machine with these interfaces, which reaches those hosts with these addresses of its own."""
    monkeypatch.setattr(network, "interface_addresses", lambda: interfaces)
    found = {host: (socket.AF_INET, address) for host, address in ways.items()}
    monkeypatch.setattr(network, "source", lambda host, port: found.get(host))


def test_this_machine() -> None:
    assert source("127.0.0.1", 1) == (socket.AF_INET, "127.0.0.1")
    assert "127.0.0.1" in network.interface_addresses()[interface("127.0.0.1", 1)]
    assert (source("nowhere.invalid", 1), interface("nowhere.invalid", 1)) == (None, "")


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
def test_what_leads_every_machine_to_itself(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_the_interface_of_the_way_to_the_main_address(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, INTERFACES, {"n0": "10.0.0.1", "127.0.0.1": "127.0.0.1"})
    assert interface("n0", 1) == "eth0"
    assert interface("127.0.0.1", 1) == "lo"  # asked for: machines that are processes
    assert interface("n1", 1) == ""


def test_the_default_routes_where_a_machine_takes_itself_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, INTERFACES, {"n0": "127.0.1.1", "192.0.2.1": "10.0.0.1"})
    assert interface("n0", 1) == "eth0"


def test_without_a_default_route_the_only_one_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, INTERFACES, {"n0": "127.0.1.1"})
    assert interface("n0", 1) == ""
    machine(monkeypatch, {name: INTERFACES[name] for name in ("lo", "eth0")}, {"n0": "127.0.1.1"})
    assert interface("n0", 1) == "eth0"


def test_a_choice_of_the_users_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, INTERFACES, {"n0": "10.0.0.1"})
    environment = {"GLOO_SOCKET_IFNAME": "ib0"}
    set_gloo_interface("n0:29500", environment)
    assert environment == {"GLOO_SOCKET_IFNAME": "ib0"}
    environment.clear()
    set_gloo_interface("n1:29500", environment)
    assert environment == {}
    set_gloo_interface("n0:29500", environment)
    assert environment == {"GLOO_SOCKET_IFNAME": "eth0"}
