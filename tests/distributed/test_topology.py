"""The topology that launchers' variables describe, and the errors for variables that contradict each other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_dist.distributed.topology import Topology, read_topology, resolve_topology
from mnist_dist.utils.errors import UserError


def environment(rank: int, world_size: int, local_rank: int, local_world_size: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "1234",
    }


def test_without_a_launcher_there_is_one_process() -> None:
    topology = read_topology({})
    assert topology == Topology(rank=0, world_size=1, local_rank=0, local_world_size=1, address="", launcher_pid=0)
    assert topology.is_main
    assert topology.is_local_main
    assert topology.machines == 1
    assert not topology.use_cpu


@given(machines=st.integers(1, 5), each=st.integers(1, 5), data=st.data())
def test_ranks_of_a_launchers_processes(machines: int, each: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, machines * each - 1))
    topology = read_topology(environment(rank, machines * each, rank % each, each))
    assert (topology.rank, topology.world_size) == (rank, machines * each)
    assert (topology.local_rank, topology.local_world_size) == (rank % each, each)
    assert topology.machines == machines
    assert topology.is_main == (rank == 0)
    assert topology.is_local_main == (rank % each == 0)
    assert topology.address == "10.0.0.1:1234"


def test_the_port_has_torchs_default() -> None:
    variables = environment(0, 2, 0, 2)
    del variables["MASTER_PORT"]
    assert read_topology(variables).address == "10.0.0.1:29500"


def test_machines_with_unequal_numbers_of_processes_are_rounded_up() -> None:
    assert read_topology(environment(0, 5, 0, 3)).machines == 2


def test_without_local_variables_all_processes_are_on_one_machine() -> None:
    topology = read_topology({"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost"})
    assert (topology.local_rank, topology.local_world_size, topology.machines) == (2, 3, 1)


@pytest.mark.parametrize(
    ("text", "use_cpu"), [("true", True), ("True", True), ("1", True), ("false", False), ("", False)]
)
def test_accelerates_use_cpu(text: str, use_cpu: bool) -> None:
    assert read_topology({"ACCELERATE_USE_CPU": text}).use_cpu is use_cpu


@pytest.mark.parametrize("mark", ["TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"])
def test_a_shell_that_kept_a_launchers_variables_is_no_launcher(mark: str) -> None:
    assert read_topology({mark: "x"}).launcher_pid == 0


CHILD = "from mnist_dist.distributed.launcher import find_launcher; print(*find_launcher())"
PARENT = """
import os, subprocess, sys
child = subprocess.Popen(["sh", "-c", 'echo $$; "$0" -c "$1"; true', sys.executable, sys.argv[-1]])
child.wait()
print(os.getpid())
"""


def test_the_launcher_may_start_a_shell_in_between() -> None:
    """As `accelerate launch --no_python script.sh`. The worker is the process that the launcher started."""
    command = [sys.executable, "-u", "-c", PARENT, "torchrun", CHILD]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout.split()
    shell, found_launcher, found_worker, launcher = lines
    assert (found_launcher, found_worker) == (launcher, shell)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("text", ["two", "1.5", "$SLURM_PROCID"])
def test_a_variable_that_is_not_a_number_is_named(name: str, text: str) -> None:
    with pytest.raises(UserError) as error:
        read_topology(environment(0, 2, 0, 2) | {name: text})
    assert (
        str(error.value)
        == f"{name}={text!r} (environment): must be a whole number of at least 0, as the launcher sets it"
    )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (environment(2, 2, 0, 2), "RANK=2 (environment): must be from 0 to WORLD_SIZE-1, and WORLD_SIZE=2"),
        (environment(-1, 2, 0, 2), "RANK='-1' (environment): must be a whole number of at least 0"),
        (environment(0, 0, 0, 1), "RANK=0 (environment): must be from 0"),
        (environment(0, 2, 2, 2), "LOCAL_RANK=2, LOCAL_WORLD_SIZE=2, WORLD_SIZE=2 (environment)"),
        (environment(0, 2, 0, 3), "LOCAL_RANK=0, LOCAL_WORLD_SIZE=3, WORLD_SIZE=2 (environment)"),
        (environment(0, 2, 0, 0), "LOCAL_RANK=0, LOCAL_WORLD_SIZE=0, WORLD_SIZE=2 (environment)"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2 (environment), but MASTER_ADDR is not set"),
    ],
)
def test_contradictions_are_refused_in_one_line(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        read_topology(variables)
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1


def test_an_ipv6_address_in_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (environment(1, 2, 1, 2) | {"MASTER_ADDR": "[fe80::1]"}).items():
        monkeypatch.setenv(name, value)
    assert resolve_topology().address == "fe80::1:1234"
    assert os.environ["MASTER_ADDR"] == "fe80::1"
