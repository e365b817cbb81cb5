"""Two or three machines of their own on this one, by network namespaces of Linux. Needs root and iproute2.

Each machine has a namespace with its own address, loopback, port numbers and firewall, its own hostname and
/etc/hosts, and its own folders for runs and for the cache. A switch, a bridge in one more namespace, joins them:
nothing of this is seen outside, so that any number of networks can be at once, all with the same addresses.
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
"""Takes a hostname, the file to see as /etc/hosts, a folder, and the command to run there."""

Names = Literal["known", "debian", "unknown"]
"""Who knows a machine's name: all; all, but the machine itself as 127.0.1.1, which is Debian's way; nobody."""


@functools.cache
def missing() -> str:
    """Why no machines can be made here; empty if they can."""
    if os.geteuid():
        return "needs root, to make network namespaces"
    absent = [program for program in ("ip", "iptables", "unshare") if not shutil.which(program)]
    if absent:
        return f"needs iproute2, iptables and util-linux: no {', '.join(absent)}"
    try:
        with tempfile.TemporaryDirectory() as work, network(1, Path(work)) as (machine,):
            machine.run("true")
    except subprocess.CalledProcessError as error:
        said = str(error.stderr).strip().splitlines() or [str(error)]
        return f"needs network namespaces, which cannot be made here: {said[-1]}"
    return ""


def missing_wire() -> str:
    """Why no slow link can be made here; empty if it can."""
    return missing() or ("" if os.path.exists("/dev/net/tun") else "needs /dev/net/tun, for a slow link")


class Machine:
    """One machine. Commands that are wrapped by `command` run on it."""

    def __init__(self, namespace: str, number: int, folder: Path, hosts: Path) -> None:
        self.namespace, self.name, self.address = namespace, f"machine{number}", address_of(number)
        self.folder, self.hosts = folder, hosts
        self.cache, self.programs = folder / "cache", folder / "bin"

    def command(self, *command: str) -> list[str]:
        """The command that runs a command on this machine, in its folder."""
        place = [self.name, str(self.hosts), str(self.folder)]
        entry = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount", "sh", "-c", INSIDE, "sh"]
        path = f"{self.programs}:{os.environ['PATH']}"
        return [*entry, *place, "env", f"XDG_CACHE_HOME={self.cache}", f"PATH={path}", *command]

    def run(self, *command: str) -> str:
        """What a command prints here. Raises CalledProcessError if it fails."""
        return call(*self.command(*command))

    def unplug(self) -> None:
        """Cut the link, as by pulling the cable: whatever is sent is lost, and nobody is told."""
        call("ip", "-n", self.namespace, "link", "set", "net", "down")

    def plug(self) -> None:
        """Join the link again that `unplug` cut."""
        call("ip", "-n", self.namespace, "link", "set", "net", "up")

    def drop(self, *what: str) -> None:
        """A firewall that drops packets that arrive here, all or those that iptables' options select."""
        self.run("iptables", "-A", "INPUT", *what, "!", "-i", "lo", "-j", "DROP")


def address_of(number: int) -> str:
    return f"10.9.8.{number + 1}"


@contextlib.contextmanager
def network(
    count: int, work: Path, names: Names = "debian", wire: tuple[float, float] | None = None
) -> Iterator[list[Machine]]:
    """Machines that reach each other.

    Args:
        work: where their folders are made.
        wire: delay in seconds, and the share of packets that is lost, each way at each machine; None is a fast link.
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
    """A namespace with its loopback up, which goes with `stack`, and with it all that was made in it."""
    call("ip", "netns", "add", name)
    stack.callback(call, "ip", "netns", "del", name)
    call("ip", "-n", name, "link", "set", "lo", "up")


def link(
    switch: str, machine: Machine, port: str, wire: tuple[float, float] | None, stack: contextlib.ExitStack
) -> None:
    """Join a machine to a port of the switch."""
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
    """What a command prints. Raises CalledProcessError if it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
