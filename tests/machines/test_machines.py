"""Several machines for real, each with its own address, name and folders: the bits of one process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clocks import ROW_CLOCKS
from launchers import LAUNCHERS, Launcher, accelerate, commands, torchrun_c10d
from network import Machine, Names, missing, network
from programs import SECONDS, Ended, read_rows, run, write_digits

from mnist_dist.errors import EXIT_DONE

pytestmark = [
    pytest.mark.launcher,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

RECIPE = [
    *("--tracking.mode=disabled", "--run.dir=run", "--run.threads=1", "--data.val_size=0", "--train.batch_size=48"),
    *("--train.shards=12", "--train.max_steps=20", "--tracking.log_steps=1", "--run.timeout=60", "--data.limit=960"),
]
"""A batch that two and three machines divide."""
LOCAL = [*RECIPE, "--data.source=local"]
TRAIN, TEST = 960, 101


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, train=TRAIN, test=TEST)
    return folder


@pytest.fixture(scope="module")
def alone(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on one process, without a launcher."""
    work = tmp_path_factory.mktemp("alone")
    command = [sys.executable, "-m", "mnist_dist.train", *LOCAL, f"--data.root={digits}"]
    subprocess.run(command, cwd=work, check=True, capture_output=True, timeout=SECONDS)
    return work / "run"


def give_data(machines: list[Machine], digits: Path) -> None:
    """Each machine has the data in its own cache."""
    for machine in machines:
        shutil.copytree(digits, machine.cache / "mnist_dist")


def summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics without what clocks said."""
    return [{key: value for key, value in row.items() if key not in ROW_CLOCKS} for row in read_rows(folder)]


def assert_as_alone(machines: list[Machine], ended: list[Ended], alone: Path, each: int = 1) -> None:
    """A run that ended with one process's weights and rows, and whose folder is on the first machine only."""
    assert [one.code for one in ended] == [EXIT_DONE] * len(machines), "\n".join(one.err for one in ended)
    assert [(machine.folder / "run").exists() for machine in machines] == [True] + [False] * (len(machines) - 1)
    found, expected = summary(machines[0].folder / "run"), summary(alone)
    assert (found["world_size"], found["machines"]) == (each * len(machines), len(machines))
    assert found["weights_sha256"] == expected["weights_sha256"]
    assert found["test.loss"] == expected["test.loss"]
    assert rows(machines[0].folder / "run") == rows(alone)


def check(launcher: Launcher, count: int, names: Names, address: str, digits: Path, work: Path, alone: Path) -> None:
    """Train on so many machines that meet at an address."""
    with network(count, work, names) as machines:
        give_data(machines, digits)
        ended = run(*commands(launcher, machines, *LOCAL, address=address), work=work)
        assert_as_alone(machines, ended, alone)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_machines_give_the_bits_of_one_process(
    launcher: Launcher, digits: Path, tmp_path: Path, alone: Path
) -> None:
    """Each takes its own name for 127.0.1.1, as Debian sets it up: gloo by itself would tell others that address.

    torchrun's c10d would not know there, by its address, which machine is the one to meet at: by its name it does.
    """
    address = "machine0" if launcher is torchrun_c10d else "10.9.8.1"
    check(launcher, 2, "debian", address, digits, tmp_path, alone)


def test_three_machines_that_meet_at_a_name(digits: Path, tmp_path: Path, alone: Path) -> None:
    """Which the first one takes for 127.0.1.1."""
    check(accelerate, 3, "debian", "machine0", digits, tmp_path, alone)
