"""The commands of the cluster files, run here with the variables that the clusters set, all give the same weights.

A cluster's machines are processes on this one; its volumes are folders.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cluster_files import KUBERNETES, SKYPILOT, command_of, containers, documents
from programs import TORCHRUN, Ended, free_port, run, started, write_digits

from mnist_dist.utils.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER

pytestmark = pytest.mark.launcher

STEPS = 144
SMALL = [
    *("--data.source=local", "--data.val_size=60", "--train.epochs=12", "--tracking.mode=disabled"),
    *("--tracking.log_steps=1", "--train.precision=no"),
]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two volumes of the files' commands, /data and /runs."""
    folder = tmp_path_factory.mktemp("volumes")
    (folder / "data" / "mnist_dist").mkdir(parents=True)  # the place in a cache, with `data` as the cache folder
    (folder / "runs").mkdir()
    write_digits(folder / "data" / "mnist_dist", train=3132, test=503)
    return folder


def mounted(words: Sequence[str], volumes: Path, run_name: str) -> list[str]:
    """A command with the volumes' paths on this machine, and with the settings of a small run."""
    words = [sys.executable if word == "python" else word for word in words]
    words = [word.replace("=/data", f"={volumes}/data/mnist_dist") for word in words]
    words = [word.replace("=/runs/mnist", f"={volumes}/runs/{run_name}") for word in words]
    assert any(str(volumes) in word for word in words)
    if not any(word.startswith("--data.root=") for word in words):  # XDG_CACHE_HOME=/data in the file
        words.append(f"--data.root={volumes}/data/mnist_dist")
    return [*TORCHRUN, *words[1:], *SMALL] if words[0] == "torchrun" else [*words, *SMALL]


def container(name: str) -> Any:
    """The first container of a file."""
    (document,) = documents(KUBERNETES / name)
    return containers(document)[0]


def summary(folder: Path) -> dict[str, Any]:
    """A run's summary."""
    return dict(json.loads((folder / "summary.json").read_text()))


def with_environment(variables: Mapping[str, str], command: Sequence[str]) -> list[str]:
    """A command with environment variables."""
    return ["env", *(f"{name}={value}" for name, value in variables.items()), *command]


@pytest.fixture(scope="module")
def single(volumes: Path) -> str:
    """The weights of job.yaml's run, whose first pod is evicted; the second one resumes."""
    command = mounted(command_of(container("job.yaml")), volumes, "single")
    with started(command, work=volumes) as (pod,):
        pod.wait_for_line("step ")
        pod.signal(signal.SIGTERM)
        ended = pod.end()
    assert ended.code == EXIT_STOPPED, ended.err
    (ended,) = run(command, work=volumes)
    assert ended.code == EXIT_DONE, ended.err
    found = summary(volumes / "runs" / "single")
    assert (found["train.steps"], found["world_size"]) == (STEPS, 1)
    assert found["resumed_from"]
    return str(found["weights_sha256"])


def assert_same(folder: Path, ended: Sequence[Ended], single: str) -> None:
    """A run of two machines ended with the weights of a single process."""
    assert [each.code for each in ended] == [EXIT_DONE] * 2, "\n".join(each.err for each in ended)
    found = summary(folder)
    assert (found["world_size"], found["machines"], found["weights_sha256"]) == (2, 2, single)


def test_a_mistake_in_the_jobs_command_gives_the_exit_code_that_is_not_retried(volumes: Path) -> None:
    (ended,) = run([*mounted(command_of(container("job.yaml")), volumes, "none"), "--optim.lr=fast"], work=volumes)
    assert ended.code == EXIT_USER


def operator_variables(name: str, rank: int, port: int) -> dict[str, str]:
    """The variables that Kubeflow's controllers set in the pod of a rank."""
    pet = {
        "NNODES": "2",
        "NPROC_PER_NODE": "1",
        "NODE_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    variables = {f"PET_{key}": value for key, value in pet.items()}
    if name == "pytorchjob.yaml":  # the older controller also sets these, counting pods
        variables |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return variables


@pytest.mark.parametrize("name", ["trainjob.yaml", "pytorchjob.yaml"])
def test_two_pods_of_kubeflow_train_as_one_process(name: str, volumes: Path, single: str) -> None:
    command = mounted(command_of(container(name)), volumes, name)
    port = free_port()
    pods = [with_environment(operator_variables(name, rank, port), command) for rank in range(2)]
    assert_same(volumes / "runs" / name, run(*pods, work=volumes), single)


def test_two_nodes_of_skypilot_train_as_one_process(volumes: Path, single: str) -> None:
    (task,) = documents(SKYPILOT)
    torchrun = volumes / "bin" / "torchrun"
    torchrun.parent.mkdir()
    torchrun.write_text('#!/bin/sh\nexec {} "$@"\n'.format(" ".join(TORCHRUN)))
    torchrun.chmod(0o755)
    script = task["run"].strip().replace("29500", str(free_port())).replace('="/runs/', f'="{volumes}/runs/')
    assert script.count(str(volumes)) == 1
    script += " --run.threads=2 " + " ".join(SMALL)

    def node(rank: int) -> list[str]:
        variables = {
            **task["envs"],
            "SKYPILOT_NODE_RANK": str(rank),
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2",
            "SKYPILOT_NUM_GPUS_PER_NODE": "0",
            "XDG_CACHE_HOME": str(volumes / "data"),
            "PATH": f"{torchrun.parent}{os.pathsep}{os.environ['PATH']}",
        }
        return with_environment(variables, ["bash", "-c", script])

    assert_same(volumes / "runs" / task["envs"]["RUN"], run(node(0), node(1), work=volumes), single)
