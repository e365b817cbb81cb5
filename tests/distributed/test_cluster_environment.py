"""Environments as launchers other than torchrun set them: the topology they describe, or the error in one line."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_dist.distributed.cluster_environment import (
    ClusterEnvironment,
    detect_cluster,
    read_first_node,
    read_tasks_per_node,
)
from mnist_dist.distributed.topology import Topology, read_topology, resolve_topology
from mnist_dist.distributed.watchdog.messages import listen
from mnist_dist.utils.errors import UserError

Variables = dict[str, str]


def srun(rank: int = 4, **others: str) -> Variables:
    """Variables of `srun --ntasks 7` on n[1-3,7], two tasks per node, as Slurm 22.05 sets them."""
    return {
        "SLURM_JOB_ID": "1234",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % 2),
        "SLURM_NODEID": str(rank // 2),
        "SLURM_NTASKS": "7",
        "SLURM_STEP_NUM_TASKS": "7",
        "SLURM_STEP_NUM_NODES": "4",
        "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
        "SLURM_STEP_NODELIST": "n[1-3,7]",
        "SLURM_JOB_NODELIST": "n[1-3,7]",
    } | others


def open_mpi(rank: int = 1, **others: str) -> Variables:
    """Variables of `mpirun -np 3`, as Open MPI 4.1.4 sets them."""
    return {
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_SIZE": "3",
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_SIZE": "3",
        "PMIX_RANK": str(rank),
        "PMIX_NAMESPACE": "2057240577",
    } | others


ALONE_ON_ITS_MACHINE = {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}


def mpich(rank: int = 1, **others: str) -> Variables:
    """Variables of `mpiexec -n 2`, as MPICH 4.0.2 sets them."""
    return {"PMI_RANK": str(rank), "PMI_SIZE": "2", "MPI_LOCALRANKID": str(rank), "MPI_LOCALNRANKS": "2"} | others


def kubeflow(rank: int = 1, **others: str) -> Variables:
    """Variables of a TrainJob of two machines with one process each."""
    return {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": "job-node-0-0.job",
        "PET_MASTER_PORT": "29400",
    } | others


def torchrun(rank: int, world_size: int) -> Variables:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": "none",
    }


def resolve(variables: Variables) -> tuple[str, int, int, int, int, str, int, int]:
    """Launcher, rank, world size, local rank, local world size, address, machine's number, number of machines."""
    t = read_topology(variables)
    ranks = t.rank, t.world_size, t.local_rank, t.local_world_size
    return t.launcher_name, *ranks, t.address, t.machine_rank, t.machines


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        # Slurm: the last node has one task; the port is derived from the job's and the step's numbers
        (srun(0), ("srun", 0, 7, 0, 2, "n1:27340", 0, 4)),
        (srun(4), ("srun", 4, 7, 0, 2, "n1:27340", 2, 4)),
        (srun(6), ("srun", 6, 7, 0, 1, "n1:27340", 3, 4)),
        (srun(4, SLURM_STEP_ID="1"), ("srun", 4, 7, 0, 2, "n1:27341", 2, 4)),
        (srun(4, MASTER_ADDR="10.0.0.9", MASTER_PORT="1"), ("srun", 4, 7, 0, 2, "10.0.0.9:1", 2, 4)),
        # cyclic distribution (srun -m cyclic): rank 4 is on the first machine
        (srun(4, SLURM_NODEID="0", SLURM_LOCALID="1"), ("srun", 4, 7, 1, 2, "n1:27340", 0, 4)),
        (  # one machine: no hostname has to be resolved
            srun(1, SLURM_STEP_NUM_TASKS="2", SLURM_STEP_TASKS_PER_NODE="2", SLURM_NODEID="0"),
            ("srun", 1, 2, 1, 2, "127.0.0.1:27340", 0, 1),
        ),
        # srun --mpi=pmi2 sets PMI's variables too
        (srun(4, PMI_RANK="4", PMI_SIZE="7"), ("srun", 4, 7, 0, 2, "n1:27340", 2, 4)),
        # MPI
        (open_mpi(), ("Open MPI", 1, 3, 1, 3, "127.0.0.1:27093", 0, 1)),
        (open_mpi(MASTER_PORT="5"), ("Open MPI", 1, 3, 1, 3, "127.0.0.1:5", 0, 1)),
        (
            open_mpi(2, **ALONE_ON_ITS_MACHINE, MASTER_ADDR="a", MASTER_PORT="5"),
            ("Open MPI", 2, 3, 0, 1, "a:5", 2, 3),
        ),
        (mpich(), ("MPICH or Intel MPI", 1, 2, 1, 2, "127.0.0.1:29500", 0, 1)),
        # mpirun in a Slurm job starts its daemon on the other machine with srun, as a step of one task
        (
            srun(0, SLURM_STEP_NUM_TASKS="2", SLURM_STEP_TASKS_PER_NODE="1(x2)") | open_mpi(2, MASTER_PORT="5"),
            ("Open MPI", 2, 3, 2, 3, "127.0.0.1:5", 0, 1),
        ),
        (srun(0) | mpich(1), ("MPICH or Intel MPI", 1, 2, 1, 2, "127.0.0.1:29500", 0, 1)),
        # Kubeflow
        (kubeflow(), ("Kubeflow (PET_*)", 1, 2, 0, 1, "job-node-0-0.job:29400", 1, 2)),
        (  # PyTorchJob, v1, sets RANK too, but not LOCAL_RANK
            kubeflow(RANK="1", WORLD_SIZE="2", MASTER_ADDR="job-master-0", MASTER_PORT="23456"),
            ("Kubeflow (PET_*)", 1, 2, 0, 1, "job-node-0-0.job:29400", 1, 2),
        ),
        # torchrun's variables win inside any other launcher
        (srun(1) | torchrun(2, 4), ("torchrun", 2, 4, 0, 1, "10.0.0.1:29500", 2, 4)),
        (kubeflow(PET_NPROC_PER_NODE="8") | torchrun(9, 16), ("torchrun", 9, 16, 0, 1, "10.0.0.1:29500", 9, 16)),
        (srun(4, RANK="4", WORLD_SIZE="7"), ("srun", 4, 7, 0, 2, "n1:27340", 2, 4)),
        # `srun -n 7 accelerate launch ...` with one process each
        (srun(4, ACCELERATE_MIXED_PRECISION="no"), ("srun", 4, 7, 0, 2, "n1:27340", 2, 4)),
    ],
)
def test_the_topology_of_each_launcher(
    variables: Variables, expected: tuple[str, int, int, int, int, str, int, int]
) -> None:
    assert resolve(variables) == expected


BATCH = {"SLURM_JOB_ID": "9", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1"}


@pytest.mark.parametrize(
    "variables",
    [
        {**BATCH, "SLURM_NTASKS": "1", "SLURM_TASKS_PER_NODE": "1", "SLURM_JOB_NODELIST": "n1"},  # an sbatch script
        {**BATCH, "SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_JOB_NODELIST": "n[1-2]"},
        {"SLURM_JOB_ID": "9", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[1-2]"},  # salloc's shell
        # the same if salloc starts it with srun (use_interactive_step), or of srun --pty bash
        srun(0, SLURM_STEP_ID="4294967290", SLURM_STEP_NUM_TASKS="1", SLURM_STEP_TASKS_PER_NODE="1"),
        open_mpi(0, OMPI_COMM_WORLD_SIZE="1"),
        mpich(0, PMI_SIZE="1"),
        kubeflow(0, PET_NNODES="1"),
    ],
)
def test_a_single_process_is_not_a_cluster(variables: Variables) -> None:
    assert detect_cluster(variables) is None
    assert read_topology(variables) == Topology()


def without(variables: Variables, name: str) -> Variables:
    return {key: value for key, value in variables.items() if key != name}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (srun(4, RANK="3"), "RANK=3 (environment), but SLURM_PROCID=4: unset RANK"),
        (srun(4, RANK="4", WORLD_SIZE="8"), "WORLD_SIZE=8 (environment), but SLURM_STEP_NUM_TASKS=7: unset WORLD"),
        (open_mpi(1, RANK="0"), "RANK=0 (environment), but OMPI_COMM_WORLD_RANK=1"),
        (kubeflow(1, RANK="0"), "RANK=0 (environment), but PET_NODE_RANK=1"),
        (srun(4, SLURM_PROCID="7"), "SLURM_PROCID=7 (environment): must be from 0 to SLURM_STEP_NUM_TASKS-1, and SLU"),
        (srun(4, SLURM_PROCID="$SLURM_PROCID"), "SLURM_PROCID='$SLURM_PROCID' (environment): must be a whole number"),
        (srun(4, SLURM_PROCID="-1"), "SLURM_PROCID='-1' (environment): must be a whole number"),
        (without(srun(), "SLURM_PROCID"), "SLURM_PROCID is not set (environment), but SLURM_STEP_NUM_TASKS=7 is"),
        (without(srun(), "SLURM_LOCALID"), "SLURM_LOCALID is not set (environment), but SLURM_STEP_NUM_TASKS=7 is"),
        (without(srun(), "SLURM_NODEID"), "SLURM_NODEID is not set (environment), but SLURM_STEP_NUM_TASKS=7 is"),
        (without(srun(), "SLURM_STEP_TASKS_PER_NODE"), "SLURM_STEP_TASKS_PER_NODE is not set (environment), but SLU"),
        (without(srun(), "SLURM_STEP_NODELIST"), "SLURM_STEP_NODELIST is not set (environment), but SLURM_STEP_NUM"),
        (srun(4, SLURM_LOCALID="2"), "SLURM_NODEID=2, SLURM_LOCALID=2 (environment): there is no such task in SLURM"),
        (srun(4, SLURM_NODEID="4"), "SLURM_NODEID=4, SLURM_LOCALID=0 (environment): there is no such task in SLURM_"),
        (srun(4, SLURM_STEP_TASKS_PER_NODE="2(x3)"), "SLURM_STEP_TASKS_PER_NODE='2(x3)' (environment): adds up to 6"),
        (srun(4, SLURM_STEP_TASKS_PER_NODE="2x3,1"), "SLURM_STEP_TASKS_PER_NODE='2x3,1' (environment): must be tasks"),
        (srun(4, SLURM_STEP_NODELIST="n[1-3"), "SLURM_STEP_NODELIST='n[1-3' (environment): must be a node list, as n["),
        (srun(4, SLURM_JOB_ID="x"), "SLURM_JOB_ID='x' (environment): must be a whole number"),
        (srun(4, MASTER_PORT="http"), "MASTER_PORT='http' (environment): must be a whole number"),
        (without(open_mpi(), "OMPI_COMM_WORLD_RANK"), "OMPI_COMM_WORLD_RANK is not set (environment), but OMPI_COMM_W"),
        (without(open_mpi(), "OMPI_COMM_WORLD_SIZE"), "OMPI_COMM_WORLD_SIZE is not set (environment), but OMPI_COMM_W"),
        (without(mpich(), "MPI_LOCALRANKID"), "MPI_LOCALRANKID is not set (environment), but PMI_SIZE=2 is"),
        (mpich(2), "PMI_RANK=2 (environment): must be from 0 to PMI_SIZE-1, and PMI_SIZE=2"),
        (mpich(1, MPI_LOCALNRANKS="1"), "MPI_LOCALRANKID=1 (environment): must be from 0 to MPI_LOCALNRANKS-1"),
        (
            open_mpi(1, OMPI_COMM_WORLD_LOCAL_SIZE="2"),
            "MASTER_ADDR is not set (environment), but Open MPI started processes on several machines",
        ),
        (kubeflow(PET_NPROC_PER_NODE="8"), "PET_NPROC_PER_NODE='8' (environment): only torchrun starts that many"),
        (
            kubeflow(PET_NPROC_PER_NODE="auto"),
            "PET_NPROC_PER_NODE='auto' (environment): only torchrun starts that many",
        ),
        (kubeflow(PET_NNODES="1:4"), "PET_NNODES='1:4' (environment): only torchrun starts that many"),
        (kubeflow(2), "PET_NODE_RANK=2 (environment): must be from 0 to PET_NNODES-1, and PET_NNODES=2"),
        (without(kubeflow(), "PET_NODE_RANK"), "PET_NODE_RANK is not set (environment), but PET_NNODES=2 is"),
        (without(kubeflow(), "PET_MASTER_ADDR"), "PET_MASTER_ADDR is not set (environment), but PET_NNODES=2"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "RANK is not set (environment), but WORLD_SIZE=2 is"),
    ],
)
def test_contradictions_are_refused_in_one_line_that_names_the_variable(variables: Variables, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_topology(variables)
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("n1", "n1"),
        ("n[1-3,7]", "n1"),
        ("node[007-9],x", "node007"),
        ("b,a", "b"),
        ("r[1-2]n[04,06]-ib.x", "r1n04-ib.x"),
    ],
)
def test_the_first_node_of_a_slurm_node_list(text: str, first: str) -> None:
    assert read_first_node({"L": text}, "L", "N") == first


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5))
def test_tasks_per_node(parts: list[tuple[int, int]]) -> None:
    text = ",".join(f"{tasks}(x{times})" if times > 1 else str(tasks) for tasks, times in parts)
    tasks = [tasks for tasks, times in parts for _ in range(times)]
    assert read_tasks_per_node({"T": text, "N": str(sum(tasks))}, "T", "N") == tasks


@given(st.text(max_size=30), st.sampled_from(["SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST"]))
def test_any_text_is_parsed_or_refused_by_name(text: str, name: str) -> None:
    message = name
    try:
        assert isinstance(detect_cluster(srun(4, **{name: text})), ClusterEnvironment)
    except UserError as error:
        message = str(error)
    assert name in message


def test_the_resolved_ranks_are_set_as_torchs_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.setenv(name, "")  # so that monkeypatch removes it afterwards
        monkeypatch.delenv(name)
    for name, value in srun(4).items():
        monkeypatch.setenv(name, value)
    topology = resolve_topology()
    assert [os.environ[name] for name in names] == ["4", "7", "0", "2", "n1", "27340"]
    assert resolve_topology() == topology  # also the second time
    assert topology.describe() == "srun, rank 4 of 7, rendezvous at n1:27340"
    assert topology.launcher_pid == 0  # no parent process to watch


def test_without_a_launcher_no_variable_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    assert resolve_topology().describe() == "none"
    assert dict(os.environ) == before
    assert not re.search("RANK", " ".join(before))


def test_a_peers_address_has_the_machine_that_slurm_set() -> None:
    """With a cyclic distribution, rank 1 is on the second machine, although the first has two processes."""
    tasks = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1", "MASTER_ADDR": "127.0.0.1"}
    for rank, machine, local_rank in (("0", "0", "0"), ("1", "1", "0"), ("2", "0", "1")):
        topology = read_topology(srun(int(rank), **tasks, SLURM_NODEID=machine, SLURM_LOCALID=local_rank))
        listener, peer = listen(topology)
        listener.close()
        assert peer.machine_rank == int(machine)
