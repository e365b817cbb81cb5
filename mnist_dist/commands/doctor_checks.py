"""The checks of `mnist-dist doctor` that one process does alone, without torch. Each gives one finding in time."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires

import psutil
from packaging.requirements import Requirement

from mnist_dist.config.schema import Config
from mnist_dist.distributed.cpu_count import allowed_cpus, cpu_limit, default_threads, has_own_cpus
from mnist_dist.distributed.network import find_interface
from mnist_dist.distributed.topology import Topology
from mnist_dist.utils.errors import UserError
from mnist_dist.utils.files import expand_home
from mnist_dist.utils.versions import installed

OK, NOTE, PROBLEM = "ok", "note", "problem"
VERDICTS = (OK, NOTE, PROBLEM)
"""From best to worst. The run works with a note, and fails with a problem."""

CHECK_SECONDS = 20.0
"""Deadline of the checks without torch, all together."""
TORCH_SECONDS = 120.0
"""Deadline of the checks with torch, which may have to be imported from a busy network disk."""
ANSWER_SECONDS = 3.0
"""Timeout of a connection."""
WRITE_BYTES = 16 << 20
"""Bytes written to measure a disk."""
CHECK = "check "
"""Beginning of the name of a check's thread."""


@dataclass(frozen=True)
class Finding:
    """What a check found on one process."""

    check: str
    """Name of the check."""
    found: str
    verdict: str = OK
    advice: str = ""
    """What to do about it."""


Check = Callable[[Config, Topology], Finding]


def is_a_check_left() -> bool:
    """Whether a check of `run_checks` still runs."""
    return any(thread.name.startswith(CHECK) for thread in threading.enumerate())


def run_checks(checks: dict[str, Check], config: Config, topology: Topology, seconds: float) -> list[Finding]:
    """Run checks in parallel, each in a daemon thread. A check that has not ended by the deadline is a problem.

    Args:
        checks: by name.
        seconds: the deadline, from now.
    """
    found: dict[str, Finding] = {}

    def run_check(name: str, check: Check) -> None:
        try:
            found[name] = check(config, topology)
        except UserError as error:
            message, _, advice = str(error).partition("; ")
            found[name] = Finding(name, message, PROBLEM, advice)
        except Exception as error:
            found[name] = Finding(name, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", PROBLEM)

    threads = [
        threading.Thread(target=run_check, args=item, daemon=True, name=f"{CHECK}{item[0]}") for item in checks.items()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    hung = f"no answer within {seconds:g} s"
    return [found.get(name) or Finding(name, hung, PROBLEM, "the disk or the network hangs") for name in checks]


def check_launcher(config: Config, topology: Topology) -> Finding:
    """The launcher that was detected."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if topology.world_size == 1 and tasks not in ("", "1"):
        return Finding("launcher", f"none, in a Slurm job of {tasks} tasks", NOTE, "srun starts one process a task")
    machines = f", {topology.machines} machine{'s' * (topology.machines > 1)}"
    return Finding("launcher", f"{topology.launcher_name or 'none'}, {topology.world_size} in all{machines}")


def check_packages(config: Config, topology: Topology) -> Finding:
    """Installed packages against the versions that mnist_dist requires."""
    try:
        needs = [Requirement(text) for text in requires("mnist_dist") or []]
    except PackageNotFoundError:
        return Finding("packages", "mnist_dist is not installed", NOTE, "pip install it to have its versions checked")
    wrong = []
    for need in needs:
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            version = installed(need.name)
            if version == "not installed" or not need.specifier.contains(version, prereleases=True):
                wrong.append(f"{need.name} {version}, needs {need.specifier}")
    if wrong:
        return Finding("packages", "; ".join(wrong), PROBLEM, "pip install -U mnist_dist")
    shown = ", ".join(f"{name} {installed(name)}" for name in ("torch", "torchvision", "accelerate", "wandb"))
    return Finding("packages", shown)


def check_cores(config: Config, topology: Topology) -> Finding:
    """CPU threads of all processes against the CPUs that the machine and the limits of cgroups allow."""
    threads = config.run.threads or default_threads(topology)
    processes, allowed, limit = topology.local_world_size, allowed_cpus(), cpu_limit()
    own = has_own_cpus(topology)
    found = f"{processes} x {threads} threads, {psutil.cpu_count(logical=False)} cores, {allowed} CPUs allowed"
    found += " to this process alone" if own else ""
    if limit < math.inf:
        found += f", limit {limit:g}"
    if threads * (1 if own else processes) > allowed or processes * threads > limit:
        return Finding("CPU", found, NOTE, "threads compete for CPUs: start fewer processes, or lower --run.threads")
    return Finding("CPU", found)


def check_shared_memory(config: Config, topology: Topology) -> Finding:
    """Free space in /dev/shm, which NCCL uses between processes of one machine."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return Finding("shared memory", "no /dev/shm", NOTE, "NCCL needs it between GPUs of one machine")
    verdict = NOTE if free < 256 << 20 and topology.local_world_size > 1 else OK
    advice = "NCCL may need more between GPUs: docker run --shm-size=1g, or an emptyDir of medium Memory"
    return Finding("shared memory", f"{format_bytes(free)} free", verdict, advice if verdict == NOTE else "")


def check_address(config: Config, topology: Topology) -> Finding:
    """Whether the main address resolves here, and on rank 0, if it opens the port itself, whether the port is free."""
    if topology.world_size == 1:
        return Finding("main address", "none needed")
    host, _, port = topology.address.rpartition(":")
    try:
        places = sorted({str(place[4][0]) for place in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)})
    except (OSError, ValueError) as error:
        advice = "correct the address (MASTER_ADDR), or add it to DNS or /etc/hosts"
        return Finding("main address", f"{topology.address}: {error}", PROBLEM, advice)
    found = topology.address + (f" is {', '.join(places)}" if places != [host] else "")
    if topology.is_main and topology.cluster:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            return Finding("main address", f"{found}: {error.strerror}", PROBLEM, "choose another MASTER_PORT")
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        if topology.machines > 1 and not host.startswith("127.") and host != "localhost":
            own = socket.gethostbyname(name)
            if own.startswith("127.") and not find_interface(host, int(port)):
                advice = "gloo may tell others that address: correct /etc/hosts, or set GLOO_SOCKET_IFNAME, as to eth0"
                return Finding("main address", f"{found}; this machine takes itself for {own}", NOTE, advice)
    return Finding("main address", found)


def check_run_folder(config: Config, topology: Topology) -> Finding:
    """Whether rank 0 can write to the run's folder, or where it will be created; write speed and free space."""
    wanted = expand_home(config.run.dir or "runs", "run.dir=")
    folder = next(path for path in (wanted, *wanted.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            start = time.monotonic()
            file.write(os.urandom(1 << 20) * (WRITE_BYTES >> 20))
            file.flush()
            os.fsync(file.fileno())
            written = format_bytes(int(WRITE_BYTES / max(time.monotonic() - start, 1e-6)))
    except OSError as error:
        advice = "free space or give permission there, or choose another --run.dir"
        return Finding("run folder", f"{folder}: {error.strerror}", PROBLEM, advice)
    free = shutil.disk_usage(folder).free
    verdict, advice = (NOTE, "checkpoints may fill it") if free < 1 << 30 else (OK, "")
    return Finding("run folder", f"{wanted}: {written}/s written, {format_bytes(free)} free", verdict, advice)


def check_wandb(config: Config, topology: Topology) -> Finding:
    """The mode of wandb, and online whether its server answers and takes the key. Training never waits for it."""
    from mnist_dist.tracking.wandb_auth import (
        check_tracking,
        describe_tracking,
        find_key,
        refuses_key,
        tracking_mode,
        wandb_address,
    )

    check_tracking(config)
    told = describe_tracking(config)
    if tracking_mode(config.tracking)[0] != "online":
        return Finding("wandb", told)
    base, (key, where) = wandb_address(), find_key()
    try:
        with urllib.request.urlopen(f"{base}/healthz", timeout=ANSWER_SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        advice = "the run records offline, as --tracking.mode=offline does at once; wandb sync sends it later"
        return Finding("wandb", f"{told}, but {base} does not answer ({error})", NOTE, advice)
    if key and refuses_key(base, key):
        advice = "`wandb login --relogin` takes another; until then runs are recorded offline"
        return Finding("wandb", f"{told}, but {base} does not take the key of {where}", NOTE, advice)
    return Finding("wandb", f"{told}, {base} answers")


def check_data(config: Config, topology: Topology) -> Finding:
    """Whether the data set is on this machine. Nothing is downloaded."""
    from mnist_dist.data.find_files import find_files
    from mnist_dist.data.prepare import is_default_root, provide_files, resolve_root
    from mnist_dist.data.sets import check_named_right

    name = config.data.name
    root = resolve_root(config.data.root, name)
    if found := find_files(root, name):
        check_named_right(name, found)
        return Finding("data", f"{next(iter(found.values())).parent}")
    if config.data.source == "local" or not is_default_root(root, name):
        provide_files(root, "local", lambda line: None, name)  # raises the error that the run would end with
    command = "mnist-dist data fetch" + ("" if name == "mnist" else f" --data.name={name}")
    return Finding("data", f"no {name} in {root}", NOTE, f"downloaded when the run starts; or now, by {command}")


def probe_address(address: str) -> str:
    """What happens to a connection to the main address: the advice if the rendezvous fails."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except TimeoutError:
        return "does not answer: a firewall drops it, or the machine is off"
    except OSError as error:
        return f"cannot be reached: {error.strerror or error}"
    return "answers: another process is missing, or two have the same rank"


def format_bytes(count: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"


ALL_RANK_CHECKS: dict[str, Check] = {
    "launcher": check_launcher,
    "packages": check_packages,
    "CPU": check_cores,
    "shared memory": check_shared_memory,
    "main address": check_address,
    "data": check_data,
}
RANK_0_CHECKS: dict[str, Check] = {"run folder": check_run_folder, "wandb": check_wandb}
