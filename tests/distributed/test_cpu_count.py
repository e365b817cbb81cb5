"""CPUs of a process: limits of cgroups, and affinity that is shared with other processes of the machine or not."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil
import pytest

from mnist_dist.commands.doctor_checks import NOTE, OK, check_cores
from mnist_dist.config.loader import load
from mnist_dist.distributed import cpu_count
from mnist_dist.distributed.cluster_environment import ClusterEnvironment
from mnist_dist.distributed.cpu_count import cpu_limit, default_threads
from mnist_dist.distributed.topology import Topology


def v1(folder: str, quota: int) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("", {}, math.inf),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "damaged"}, math.inf),
        ("1:cpu,cpuacct:/\n", v1("cpu", -1), math.inf),
        ("1:cpu,cpuacct:/\n", v1("cpu", 400000), 4),
        # nested: systemd (version 2), Slurm (version 1), a limit of a container around that of a job
        ("0::/user.slice/run.scope\n", {"user.slice/run.scope/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/user.slice/run.scope\n", {"user.slice/cpu.max": "200000 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("3:memory:/x\n2:cpuacct,cpu:/slurm/job_7\n0::/\n", v1("cpu/slurm/job_7", 600000), 6),
        ("3:memory:/x\n", {"x/cpu.max": "1 1"}, math.inf),  # another controller's group
        ("2:cpu:/docker/of-the-host\n", v1("cpu", 100000), 1),  # a path that does not exist in the container
        ("0::/../../other\n", {"cpu.max": "300000 100000\n"}, 3),
    ],
)
def test_the_cpu_limit_is_the_smallest_of_all_cgroups(
    own: str, files: dict[str, str], limit: float, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cpu_limit(tmp_path / "cgroup", tmp_path / "own") == limit


class Ancestor:
    """A stand-in for a process: its environment, or AccessDenied for another user's."""

    def __init__(self, pid: int, variables: dict[str, str] | None) -> None:
        self.pid, self.variables = pid, variables

    def environ(self) -> dict[str, str]:
        if self.variables is None:
            raise psutil.AccessDenied(self.pid)
        return self.variables


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[int]]:
    """A machine of 16 cores without limit; the affinity of each process, by id. 0 is this process."""
    affinity: dict[int, set[int]] = {}
    monkeypatch.setattr(cpu_count, "cpu_limit", lambda: math.inf)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16)
    monkeypatch.setattr(os, "sched_getaffinity", affinity.__getitem__)
    return affinity


SRUN = ClusterEnvironment("srun", 1, 4, 1, 4, "a", 1, "SLURM_PROCID", "SLURM_NTASKS")
TASK, FOUR = {"SLURM_PROCID": "1"}, set(range(4))
TORCHRUN = Topology(1, 2, 1, 2, launcher_pid=7)


@pytest.mark.parametrize(
    ("topology", "own", "ancestors", "threads"),
    [
        # srun --cpus-per-task=4, and the same by a script; slurmstepd is root's
        (Topology(1, 4, 1, 4, cluster=SRUN), FOUR, [(Ancestor(7, None), set(range(16)))], 4),
        (
            Topology(1, 4, 1, 4, cluster=SRUN),
            FOUR,
            [(Ancestor(6, TASK), FOUR), (Ancestor(7, None), set(range(16)))],
            4,
        ),
        # srun without binding
        (Topology(1, 4, 1, 4, cluster=SRUN), set(range(16)), [(Ancestor(7, None), set(range(16)))], 4),
        # taskset torchrun: both processes share four CPUs
        (TORCHRUN, FOUR, [(Ancestor(7, {}), FOUR), (Ancestor(8, {}), set(range(16)))], 2),
        # torchrun --no-python taskset: each has its own
        (TORCHRUN, FOUR, [(Ancestor(7, {}), set(range(16)))], 4),
        # torchrun in a task of srun
        (TORCHRUN, FOUR, [(Ancestor(7, TASK), FOUR), (Ancestor(8, None), set(range(16)))], 2),
        (Topology(), FOUR, [], 4),
    ],
)
def test_cpus_that_are_given_to_each_process_are_not_divided_again(
    topology: Topology,
    own: set[int],
    ancestors: list[tuple[Ancestor, set[int]]],
    threads: int,
    machine: dict[int, set[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine |= {0: own} | {ancestor.pid: cpus for ancestor, cpus in ancestors}
    monkeypatch.setattr(psutil.Process, "parents", lambda self: [ancestor for ancestor, _ in ancestors])
    assert default_threads(topology) == threads
    assert check_cores(load([]).config, topology).verdict == OK
    assert check_cores(load(["--run.threads=9"]).config, topology).verdict == NOTE


def test_threads_stay_within_a_limit(machine: dict[int, set[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    machine[0] = set(range(16))
    monkeypatch.setattr(psutil.Process, "parents", lambda self: [])
    assert default_threads(Topology()) == 16
    monkeypatch.setattr(cpu_count, "cpu_limit", lambda: 2.5)
    assert default_threads(Topology()) == 2
    assert default_threads(Topology(local_world_size=4)) == 1
