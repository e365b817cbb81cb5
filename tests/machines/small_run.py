"""One small run, on one process or on several machines, and the check that both give the same."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from measured_keys import MEASURED_ROW_KEYS
from network import Machine
from programs import PYTHON, SECONDS, Ended, read_rows, write_digits

from mnist_dist.utils.errors import EXIT_DONE

RECIPE = [
    *("--tracking.mode=disabled", "--run.dir=run", "--run.threads=1", "--data.val_size=0", "--train.batch_size=48"),
    *("--train.shards=12", "--train.max_steps=20", "--tracking.log_steps=1", "--run.timeout=60", "--data.limit=960"),
]
"""The batch can be divided by two and three machines; 20 steps are an epoch."""
LOCAL = [*RECIPE, "--data.source=local"]


def make_digits(folder: Path) -> Path:
    """Synthetic digits, of which the recipe uses all."""
    write_digits(folder, train=960, test=101)
    return folder


def train_alone(work: Path, *settings: str) -> Path:
    """Train on one process without a launcher; the run's folder."""
    command = [*PYTHON, "-m", "mnist_dist.train", *settings]
    subprocess.run(command, cwd=work, check=True, capture_output=True, timeout=SECONDS)
    return work / "run"


def give_data(machines: list[Machine], digits: Path) -> None:
    """Copy the data to each machine's own cache."""
    for machine in machines:
        shutil.copytree(digits, machine.cache / "mnist_dist")


def summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics without measured times."""
    return [{key: value for key, value in row.items() if key not in MEASURED_ROW_KEYS} for row in read_rows(folder)]


def assert_as_alone(machines: list[Machine], ended: list[Ended], alone: Path, each: int = 1) -> None:
    """The run ended with the weights and rows of one process, and its folder is on the first machine only."""
    assert [one.code for one in ended] == [EXIT_DONE] * len(machines), "\n".join(one.err for one in ended)
    assert [(machine.folder / "run").exists() for machine in machines] == [True] + [False] * (len(machines) - 1)
    found, expected = summary(machines[0].folder / "run"), summary(alone)
    assert (found["world_size"], found["machines"]) == (each * len(machines), len(machines))
    assert found["weights_sha256"] == expected["weights_sha256"]
    assert found["test.loss"] == expected["test.loss"]
    assert rows(machines[0].folder / "run") == rows(alone)
