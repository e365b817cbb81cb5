"""A Slurm cluster of two virtual nodes on this machine: munged, slurmctld and one slurmd per node. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("n1", "n2")
START_SECONDS = 60
"""For a daemon to start."""

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldPort={controller}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=5
JobRequeue=1
{nodes}
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN"


def missing() -> str:
    """Why a cluster cannot be started here; empty if it can."""
    if os.geteuid():
        return "needs root, to start Slurm's daemons"
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    return f"needs Slurm and munge (apt-get install slurm-wlm munge): no {', '.join(absent)}" if absent else ""


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Start the daemons, with their files in a temporary folder; gives the environment for Slurm's commands."""
    # Not pytest's folder: munge requires that every folder on the path may be entered by all users.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with start_daemons(folder) as environment:
            yield environment


@contextlib.contextmanager
def start_daemons(folder: Path) -> Iterator[dict[str, str]]:
    """munged, slurmctld and both slurmd, with their files in `folder`."""
    host = socket.gethostname()
    controller, *ports = free_ports(1 + len(NODES))
    cpus = os.cpu_count() or 1
    nodes = (NODE.format(name=name, host=host, port=port, cpus=cpus) for name, port in zip(NODES, ports, strict=True))
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, folder=folder, controller=controller, nodes="\n".join(nodes)))
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    environment = os.environ | {"SLURM_CONF": str(config)}
    key, munge = folder / "munge.key", folder / "munge.socket"
    subprocess.run(["mungekey", "--create", f"--keyfile={key}"], check=True)
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("log", "pid", "seed")]
    commands = [["munged", "--foreground", f"--key-file={key}", f"--socket={munge}", *files]]
    commands += [["slurmctld", "-D", "-f", str(config)]]
    commands += [["slurmd", "-D", "-N", node, "-f", str(config)] for node in NODES]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("ab") as out:
                daemons.append(
                    subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
                )
            if command[0] == "munged":
                wait_until(munge.exists, "munged", daemons)
        wait_until(lambda: count_idle_nodes(environment) == len(NODES), "the nodes", daemons)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()


def count_idle_nodes(environment: dict[str, str]) -> int:
    """Number of idle nodes."""
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"], env=environment, capture_output=True, text=True
    )
    return len(done.stdout.split())


def wait_until(condition: Callable[[], bool], what: str, daemons: list[subprocess.Popen[bytes]]) -> None:
    """Wait until a condition holds. Raises RuntimeError if a daemon ends before, or after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        ended = [daemon.args for daemon in daemons if daemon.poll() is not None]
        if ended or time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come up" + (f": {ended} ended" if ended else ""))
        time.sleep(0.2)
