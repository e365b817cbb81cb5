"""Several machines on this one, as network namespaces of Linux. Needs root and iproute2.

Each machine has a namespace with its own address, loopback, port numbers and firewall, its own hostname and
/etc/hosts, and its own folders for runs and for the cache. A switch (a bridge in one more namespace) connects them.
Nothing of it is visible outside, so that several networks with the same addresses can exist at once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

WIRE = Path(__file__).with_name("wire.py")

INSIDE = 'hostname "$1" && mount --bind "$2" /etc/hosts && cd "$3" && shift 3 && exec "$@"'
"""A shell script. Takes a hostname, the file to mount as /etc/hosts, a folder, and the command to run there."""

Names = Literal["known", "debian", "unknown"]
"""Which hostnames are in /etc/hosts: all; all, but a machine's own as 127.0.1.1, as on Debian; none."""


@functools.cache
def missing() -> str:
    """Why machines cannot be created here; empty if they can."""
    if os.geteuid():
        return "needs root, to create network namespaces"
    absent = [program for program in ("ip", "iptables", "unshare") if not shutil.which(program)]
    if absent:
        return f"needs iproute2, iptables and util-linux: no {', '.join(absent)}"
    try:
        with tempfile.TemporaryDirectory() as work, network(1, Path(work)) as (machine,):
            machine.run("true")
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr).strip().splitlines() or [str(error)]
        return f"needs network namespaces, which cannot be created here: {lines[-1]}"
    return ""


def missing_wire() -> str:
    """Why a slow link cannot be created here; empty if it can."""
    return missing() or ("" if os.path.exists("/dev/net/tun") else "needs /dev/net/tun, for a slow link")


class Machine:
    """One machine. `command` wraps a command so that it runs there."""

    def __init__(self, namespace: str, number: int, folder: Path, hosts: Path) -> None:
        self.namespace, self.name, self.address = namespace, f"machine{number}", address_of(number)
        self.folder, self.hosts = folder, hosts
        self.cache, self.programs = folder / "cache", folder / "bin"

    def command(self, *command: str) -> list[str]:
        """The command that runs a command on this machine, in its folder."""
        where = [self.name, str(self.hosts), str(self.folder)]
        entry = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount", "sh", "-c", INSIDE, "sh"]
        path = f"{self.programs}:{os.environ['PATH']}"
        return [*entry, *where, "env", f"XDG_CACHE_HOME={self.cache}", f"PATH={path}", *command]

    def run(self, *command: str) -> str:
        """Run a command on this machine; its output. Raises CalledProcessError if it fails."""
        return call(*self.command(*command))

    def unplug(self) -> None:
        """Cut the link, as by pulling the cable: packets are lost, and no process is notified."""
        call("ip", "-n", self.namespace, "link", "set", "net", "down")

    def plug(self) -> None:
        """Restore the link that `unplug` cut."""
        call("ip", "-n", self.namespace, "link", "set", "net", "up")

    def drop(self, *what: str) -> None:
        """Drop incoming packets by a firewall: all, or those that iptables' options select."""
        self.run("iptables", "-A", "INPUT", *what, "!", "-i", "lo", "-j", "DROP")


def address_of(number: int) -> str:
    return f"10.9.8.{number + 1}"


@contextlib.contextmanager
def network(
    count: int, work: Path, names: Names = "debian", wire: tuple[float, float] | None = None
) -> Iterator[list[Machine]]:
    """Machines that reach each other, until the end of the block.

    Args:
        work: folder in which theirs are created.
        wire: delay in seconds and share of lost packets, each way at each machine; None for a fast link.
    """
    token = f"{os.getpid()}-{secrets.token_hex(3)}"
    switch = f"switch-{token}"
    with contextlib.ExitStack() as stack:
        add_namespace(switch, stack)
        call("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        call("ip", "-n", switch, "link", "set", "bridge", "up")
        machines = []
        for number in range(count):
            namespace = f"machine{number}-{token}"
            add_namespace(namespace, stack)
            machine = Machine(namespace, number, work / f"machine{number}", work / f"hosts{number}")
            link(switch, machine, f"port{number}", wire, stack)
            machines.append(machine)
            for own in (machine.cache, machine.programs):
                own.mkdir(parents=True)
            machine.hosts.write_text(hosts(number, count, names))
        yield machines


def hosts(number: int, count: int, names: Names) -> str:
    """A machine's /etc/hosts."""
    lines = ["127.0.0.1 localhost"]
    for other in range(count):
        address = "127.0.1.1" if (other, names) == (number, "debian") else address_of(other)
        lines += [f"{address} machine{other}"] * (names != "unknown")
    return "\n".join([*lines, ""])


def add_namespace(name: str, stack: contextlib.ExitStack) -> None:
    """Create a namespace with its loopback up; `stack` deletes it, with all that is in it."""
    call("ip", "netns", "add", name)
    stack.callback(call, "ip", "netns", "del", name)
    call("ip", "-n", name, "link", "set", "lo", "up")


def link(
    switch: str, machine: Machine, port: str, wire: tuple[float, float] | None, stack: contextlib.ExitStack
) -> None:
    """Connect a machine to a port of the switch."""
    if wire is None:
        call("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "net", "netns", machine.namespace)
    else:
        command = ["ip", "netns", "exec", switch, sys.executable, str(WIRE), port, "net", *map(str, wire)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        call("ip", "-n", switch, "link", "set", "net", "netns", machine.namespace)
    call("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
    call("ip", "-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", "net")
    call("ip", "-n", machine.namespace, "link", "set", "net", "up")


def call(*command: str) -> str:
    """Run a command; its output. Raises CalledProcessError if it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
