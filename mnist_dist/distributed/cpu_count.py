"""How many CPUs this process may use: its affinity, the limits of its cgroups, its share of the machine."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from mnist_dist.distributed.topology import Topology

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def default_threads(topology: Topology) -> int:
    """CPU threads of each process: the physical cores that it may use, divided by the processes that share them.

    The CPU affinity and the limits of cgroups (containers, Slurm, systemd) count too. Launchers would set
    OMP_NUM_THREADS=1 by default, which halves the speed on two cores.
    """
    cores = psutil.cpu_count(logical=False) or allowed_cpus()
    processes = topology.local_world_size
    if not has_own_cpus(topology):
        return max(int(min(cores, allowed_cpus(), cpu_limit()) // processes), 1)
    return max(int(min(cores, allowed_cpus(), cpu_limit() / processes)), 1)


def allowed_cpus() -> int:
    """CPUs that this process may run on, by its affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_own_cpus(topology: Topology) -> bool:
    """Whether this process was given CPUs of its own, which the other processes of the machine do not share.

    So do srun --cpus-per-task, mpirun's binding, and taskset for each process. Then its affinity differs from that of
    its launcher: the nearest ancestor that does not have its rank.
    """
    if topology.local_world_size == 1 or not hasattr(os, "sched_getaffinity"):
        return False
    name = topology.cluster.rank_variable if topology.cluster else "RANK"
    own = os.sched_getaffinity(0)
    with contextlib.suppress(psutil.Error, OSError):
        for ancestor in psutil.Process().parents():
            if read_variable(ancestor, name) != str(topology.rank):
                return os.sched_getaffinity(ancestor.pid) > own
    return False


def read_variable(process: psutil.Process, name: str) -> str:
    """An environment variable that a process was started with; empty if it has none, or is another user's."""
    try:
        return process.environ().get(name, "")
    except psutil.Error:
        return ""


def cpu_limit(root: Path = CGROUP, own: Path = OWN_CGROUPS) -> float:
    """CPU limit of this process, in CPUs: the smallest of its cgroups (version 2 or 1); infinity without one.

    Args:
        root: where the cgroups are mounted.
        own: the file with the paths of this process's cgroups.
    """
    return min((limit for folder in cgroup_folders(root, own) for limit in read_limits(folder)), default=math.inf)


def cgroup_folders(root: Path, own: Path) -> Iterator[Path]:
    """The folders of this process's cgroups and of all that contain them. Some may not exist inside a container."""
    yield from (root, root / "cpu")
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():  # 0::/PATH, or NUMBER:cpu,cpuacct:/PATH
            _, controllers, path = line.split(":", 2)
            if (controllers and "cpu" not in controllers.split(",")) or ".." in path:
                continue
            mount = root / "cpu" if controllers else root
            folder = Path(f"{mount}/{path.strip('/')}")
            yield from (each for each in (folder, *folder.parents) if mount in each.parents)


def read_limits(folder: Path) -> Iterator[float]:
    """The limit in a folder of cgroup version 2 or 1, in CPUs; none if there is no limit, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (folder / "cpu.max").read_text().split()
        yield int(quota) / int(period)  # ValueError for "max": no limit
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            yield int(quota) / int(period)
