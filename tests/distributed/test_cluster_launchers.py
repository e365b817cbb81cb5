"""Processes started as by srun, mpirun or Kubeflow are one run, with the weights of a single process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest
from harness import run_ranks, try_ranks
from programs import ACCELERATE, LAUNCH, free_port, run, write_digits

import mnist_dist.training.rank_checks
from mnist_dist.train import main
from mnist_dist.utils.versions import software

MPIRUN = shutil.which("mpirun")
TRAIN = [
    *("--data.source=local", "--data.val_size=10", "--train.batch_size=48", "--train.shards=6", "--train.max_steps=4"),
    *("--run.device=cpu", "--run.threads=1", "--train.precision=no", "--tracking.mode=disabled", "--run.timeout=60"),
]


def slurm_job(port: int) -> dict[str, str]:
    """Job and step numbers from which this port is derived."""
    job, step = divmod(port - 15000, 10)
    return {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}


def slurm_port() -> int:
    """A free port of those that are derived from job numbers."""
    for port in range(15000 + os.getpid() % 5000, 30000):
        with socket.socket() as listening:
            try:
                listening.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def environments_of(launcher: str) -> list[dict[str, str]]:
    """The variables that a launcher sets, for each process."""
    if launcher == "srun":
        step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "n1"}
        job = slurm_job(slurm_port()) | step | {"SLURM_NODEID": "0"}
        return [job | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01"]
    if launcher == "srun, two machines, cyclic distribution":
        step = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_STEP_NODELIST": "localhost,x"}
        job = slurm_job(slurm_port()) | step
        ids = (("0", "0", "0"), ("1", "1", "0"), ("2", "0", "1"))
        return [job | {"SLURM_PROCID": r, "SLURM_NODEID": n, "SLURM_LOCALID": i} for r, n, i in ids]
    port = {"MASTER_PORT": str(free_port())}
    if launcher == "Open MPI":
        kinds = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
        size = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"}
        return [port | size | dict.fromkeys(kinds, rank) for rank in "012"]
    if launcher == "MPICH or Intel MPI":
        size = {"PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}
        return [port | size | dict.fromkeys(("PMI_RANK", "MPI_LOCALRANKID"), rank) for rank in "01"]
    pod = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "localhost"}
    return [pod | {"PET_MASTER_PORT": port["MASTER_PORT"], "PET_NODE_RANK": rank} for rank in "01"]


def train(environments: list[dict[str, str]], data: Path, folder: Path) -> int:
    """Remove the harness's variables, and train as a process of another launcher."""
    rank = int(os.environ["RANK"])
    for name in [name for name in os.environ if name.startswith(("TORCHELASTIC", "MASTER_")) or "RANK" in name]:
        del os.environ[name]
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        del os.environ[name]
    os.environ.update(environments[rank])
    with (folder / f"out-{rank}").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return main([*TRAIN, f"--data.root={data}", f"--run.dir={folder / 'run'}"])


def printed(folder: Path, rank: int) -> str:
    return (folder / f"out-{rank}").read_text()


def summary(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "run" / "summary.json").read_text()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    write_digits(root, train=300, test=50)
    return root


@pytest.fixture(scope="module")
def single(data: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    """The weights of one process without a launcher."""
    folder = tmp_path_factory.mktemp("single")
    assert run_ranks(1, train, [{}], data, folder) == [0]
    assert "launcher: none\n" in printed(folder, 0)
    return summary(folder)["weights_sha256"]


@pytest.mark.parametrize(
    ("launcher", "machines"),
    [
        ("srun", 1),
        ("srun, two machines, cyclic distribution", 2),
        ("Open MPI", 1),
        ("MPICH or Intel MPI", 1),
        ("Kubeflow (PET_*)", 2),
    ],
)
def test_processes_of_a_launcher_are_one_run(
    launcher: str, machines: int, data: Path, single: object, tmp_path: Path
) -> None:
    environments = environments_of(launcher)
    assert run_ranks(len(environments), train, environments, data, tmp_path) == [0] * len(environments)
    found = summary(tmp_path)
    assert (found["world_size"], found["machines"]) == (len(environments), machines)
    assert found["weights_sha256"] == single
    out = printed(tmp_path, 0)
    name = launcher.partition(",")[0]
    assert f"launcher: {name}, rank 0 of {len(environments)}, rendezvous at " in out
    assert all(printed(tmp_path, rank) == "" for rank in range(1, len(environments)))


def test_a_contradiction_is_one_line_and_exit_code_2(data: Path, tmp_path: Path) -> None:
    (outcome,) = try_ranks(1, train, [{"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}], data, tmp_path)
    assert outcome.value == 2
    (line,) = printed(tmp_path, 0).splitlines()
    assert line.startswith("mnist_dist: error: SLURM_PROCID is not set (environment), but SLURM_STEP_NUM_TASKS=2 is")


@pytest.mark.launcher
@pytest.mark.skipif(MPIRUN is None, reason="no mpirun here (Debian: openmpi-bin)")
def test_mpirun_and_accelerate_train_the_same(data: Path, single: object, tmp_path: Path) -> None:
    command = ["-m", "mnist_dist.train", *TRAIN, f"--data.root={data}"]
    mpirun = ["env", "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", str(MPIRUN)]
    mpi = [*mpirun, "--oversubscribe", "-np", "2", sys.executable, *command, f"--run.dir={tmp_path / 'mpi' / 'run'}"]
    accelerate = [*ACCELERATE, "--config_file", str(LAUNCH / "cpu_2.yaml"), *command]
    ended = [run(each, work=tmp_path)[0] for each in (mpi, [*accelerate, f"--run.dir={tmp_path / 'acc' / 'run'}"])]
    assert [each.code for each in ended] == [0, 0], [each.err for each in ended]
    assert "Open MPI, rank 0 of 2, rendezvous at 127.0.0.1:" in ended[0].out  # in colours: mpirun makes a terminal
    assert "launcher: accelerate launch, rank 0 of 2, rendezvous at 127.0.0.1:" in ended[1].out
    for name in ("mpi", "acc"):
        found = summary(tmp_path / name)
        assert (found["world_size"], found["weights_sha256"]) == (2, single)


def train_with_odd_rank(environments: list[dict[str, str]], data: Path, folder: Path, difference: str) -> int:
    """Train; rank 1 has other code, or another clock."""
    if os.environ["RANK"] == "1" and difference == "code":
        mnist_dist.training.rank_checks.software = lambda: software() | {"code": "other"}  # type: ignore[attr-defined]
    elif os.environ["RANK"] == "1":
        now = time.time
        time.time = lambda: now() + 60
    return train(environments, data, folder)


def test_other_code_on_one_machine_is_refused(data: Path, tmp_path: Path) -> None:
    outcomes = try_ranks(2, train_with_odd_rank, environments_of("MPICH or Intel MPI"), data, tmp_path, "code")
    assert [outcome.value for outcome in outcomes] == [2, 2]
    (line,) = printed(tmp_path, 0).splitlines()
    expected = f"the software of rank 1 differs from rank 0's: code='other' against {software()['code']!r}; start all"
    assert line == f"mnist_dist: error: {expected} with the same"
    assert not (tmp_path / "run").exists()


def test_a_clock_that_is_far_off_is_a_warning(data: Path, tmp_path: Path) -> None:
    assert run_ranks(2, train_with_odd_rank, environments_of("MPICH or Intel MPI"), data, tmp_path, "clock") == [0, 0]
    (line,) = [line for line in printed(tmp_path, 0).splitlines() if line.startswith("warning: ")]
    assert line.startswith("warning: the clock of rank 1 is 60 s ahead of rank 0's")
