"""launch/slurm/train.sbatch on a real Slurm cluster of two virtual nodes on this machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import cluster, missing
from programs import LAUNCH, read_rows, write_digits

pytestmark = [
    pytest.mark.launcher,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(600),
]

SCRIPT = LAUNCH / "slurm" / "train.sbatch"
IMAGES = 3000
RECIPE = ["--data.source=local", "--data.val_size=0", "--run.threads=1", "--train.epochs=10000", "--optim.lr=0.0001"]
JOB_SECONDS = 240.0
"""For a job to end."""
TRAIN_SECONDS = 50.0
"""Slurm checks time limits every 30 s, so the signal comes 30 to 60 s after the start of a job."""


class Slurm:
    """A running cluster, and the folder that its nodes share."""

    def __init__(self, environment: dict[str, str], work: Path) -> None:
        bin_folder = str(Path(sys.executable).parent)  # where torchrun is
        self.environment = environment | {"PATH": f"{bin_folder}:{environment['PATH']}"}
        self.work = work

    def command(self, *command: str) -> str:
        """Run a command; its output."""
        done = subprocess.run(command, env=self.environment, cwd=self.work, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, *arguments: str, options: tuple[str, ...] = ("--nodes=2", "--cpus-per-task=1")) -> str:
        """Submit a job; its number."""
        recipe = [*RECIPE, f"--data.root={self.work}/data", "--tracking.mode=disabled"]
        return self.command("sbatch", "--parsable", *options, str(SCRIPT), *recipe, *arguments).strip()

    def field(self, job: str, name: str) -> str:
        """One field of `scontrol show job`."""
        found = re.search(rf"\b{name}=(\S+)", self.command("scontrol", "--oneliner", "show", "job", job))
        assert found, name
        return found[1]

    def wait(self, job: str, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; after JOB_SECONDS, fail with the job's output."""
        deadline = time.monotonic() + JOB_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.output(job)
            time.sleep(0.5)

    def wait_for_end(self, job: str) -> str:
        """Wait for a job's end; its final state."""
        going = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"}
        self.wait(job, lambda: self.field(job, "JobState") not in going)
        return self.field(job, "JobState")

    def output(self, job: str) -> str:
        """What a job has written so far."""
        return "".join(path.read_text() for path in self.work.glob(f"slurm-*-{job}.out"))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    work = tmp_path_factory.mktemp("shared")
    (work / "data").mkdir()
    write_digits(work / "data", train=IMAGES, test=100)
    with cluster() as environment:
        yield Slurm(environment, work)


def train_alone(slurm: Slurm, folder: Path, *arguments: str) -> dict[str, object]:
    """Train on one process without Slurm; the summary."""
    recipe = [*RECIPE, f"--data.root={slurm.work}/data", "--tracking.mode=disabled", *arguments]
    command = [sys.executable, "-m", "mnist_dist.train", *recipe, f"--run.dir={folder}/run"]
    subprocess.run(command, check=True, capture_output=True, timeout=JOB_SECONDS)
    return summary_of(folder / "run")


def summary_of(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "summary.json").read_text()))


def test_two_nodes_give_the_bits_of_one_process(slurm: Slurm, tmp_path: Path) -> None:
    """Arguments with blanks, quotes and dollars are passed on unchanged."""
    names = '--data.classes=["a b","it\'s","$HOME","*","e","f","g","h","i","j"]'
    job = slurm.submit("--train.max_steps=30", names)
    assert slurm.wait_for_end(job) == "COMPLETED", slurm.output(job)
    found = summary_of(slurm.work / "runs" / f"slurm-{job}")
    assert (found["world_size"], found["machines"]) == (2, 2)
    assert found["weights_sha256"] == train_alone(slurm, tmp_path, "--train.max_steps=30")["weights_sha256"]
    config = (slurm.work / "runs" / f"slurm-{job}" / "config.yaml").read_text()
    assert "a b" in config
    assert "$HOME" in config


def test_a_job_is_requeued_at_its_time_limit_and_ends_with_the_weights_of_an_uninterrupted_run(
    slurm: Slurm, tmp_path: Path
) -> None:
    """The first part is ended by the time limit's own signal."""
    (tmp_path / "short").mkdir()
    (tmp_path / "whole").mkdir()
    short = train_alone(slurm, tmp_path / "short", "--train.max_steps=200")
    steps = int(200 * TRAIN_SECONDS / float(str(short["train.seconds"])))
    job = slurm.submit(
        f"--train.max_steps={steps}",
        options=("--nodes=2", "--cpus-per-task=1", "--time=60", "--signal=B:USR1@90"),
    )
    slurm.wait(job, lambda: "\nstep " in slurm.output(job))  # else there would be nothing to resume from
    slurm.command("scontrol", "update", f"JobId={job}", "TimeLimit=2")
    slurm.wait(job, lambda: slurm.field(job, "Restarts") == "1")
    slurm.command("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    assert slurm.wait_for_end(job) == "COMPLETED", slurm.output(job)
    whole = train_alone(slurm, tmp_path / "whole", f"--train.max_steps={steps}")
    folder = slurm.work / "runs" / f"slurm-{job}"
    assert summary_of(folder)["weights_sha256"] == whole["weights_sha256"]
    losses = [
        [row["train.loss"] for row in read_rows(f) if "train.loss" in row] for f in (folder, tmp_path / "whole/run")
    ]
    assert losses[0] == losses[1]
    output = slurm.output(job)
    assert "this job goes back into the queue" in output
    assert f"resuming from runs/slurm-{job}/checkpoints/" in output


def test_an_array_is_a_sweep_over_seeds(slurm: Slurm) -> None:
    job = slurm.submit("--train.max_steps=5", options=("--array=3-4", "--cpus-per-task=1"))
    folders = {seed: slurm.work / "runs" / f"slurm-{job}_{seed}" for seed in (3, 4)}
    slurm.wait(job, lambda: all((folder / "summary.json").exists() for folder in folders.values()))
    assert len({summary_of(folder)["weights_sha256"] for folder in folders.values()}) == 2
    for seed, folder in folders.items():
        assert f"seed: {seed}" in (folder / "config.yaml").read_text()


def test_a_mistake_ends_the_job_at_once_and_is_not_requeued(slurm: Slurm) -> None:
    job = slurm.submit("--train.batch_sice=5")
    assert slurm.wait_for_end(job) == "FAILED"
    assert slurm.field(job, "Restarts") == "0"
    assert "did you mean train.batch_size?" in slurm.output(job)
