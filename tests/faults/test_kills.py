"""A run that is killed at any moment and started again by the same command ends like an uninterrupted one.

Processes run the real program and get a SIGKILL at a moment that the test chooses: before a step or an update, in an
evaluation, or while they write a checkpoint, metrics.jsonl or summary.json.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from harness import Outcome, try_ranks
from measured_keys import MEASURED_ROW_KEYS, MEASURED_SUMMARY_KEYS
from programs import write_digits
from small_checkpoint import corruption

from mnist_dist import train
from mnist_dist.checkpoint import manager, run_dir
from mnist_dist.checkpoint.manager import list_checkpoints
from mnist_dist.commands.run_status import read_run_status
from mnist_dist.distributed.ddp import DDPStrategy
from mnist_dist.distributed.fixed_shards import FixedShardStrategy
from mnist_dist.tracking import metrics_file
from mnist_dist.training import evaluation
from mnist_dist.training.train_step import TrainStep
from mnist_dist.utils.errors import EXIT_DONE

STEPS = 10
"""Two epochs of five batches, of which the last one is smaller."""
RECIPE = (
    *("--run.device=cpu", "--run.threads=1", "--run.quiet=true", "--run.timeout=20", "--tracking.mode=disabled"),
    *("--data.source=local", "--data.val_size=30", "--model.name=basic", "--train.epochs=2", "--train.batch_size=24"),
    *("--train.eval_batch_size=16", "--train.eval_steps=3", "--train.checkpoint_steps=2", "--tracking.log_steps=1"),
    *("--optim.ema=0.9", "--data.shift=2", "--train.precision=no"),
)
SETTINGS: dict[str, tuple[str, ...]] = {
    "shards": ("--train.shards=4", "--train.batch_size=24"),
    "ddp": ("--train.shards=0", "--train.accumulate=2"),
    "six shards": ("--train.shards=6",),
}
IGNORED_KEYS = MEASURED_SUMMARY_KEYS | {"run_id", "resumed_from", "world_size"}


@dataclass(frozen=True)
class Kill:
    """When a rank kills itself: at the `count`th occurrence of a moment, from 1."""

    moment: str
    count: int


MOMENTS: dict[str, list[tuple[Any, str]]] = {
    # A moment occurs before each call of one of its functions, in any thread.
    "step": [(TrainStep, "step")],
    "update": [(DDPStrategy, "forward_backward"), (FixedShardStrategy, "reduce_shards")],
    "evaluation": [(evaluation.F, "cross_entropy")],
    "row": [(metrics_file, "append")],
    "trim": [(metrics_file, "trim")],
    "checkpoint": [(manager, "save_checkpoint"), (manager, "serialize"), (manager, "recover")],
    "disk": [(os, "fsync"), (os, "mkdir"), (Path, "rename"), (manager.shutil, "rmtree"), (Path, "replace")],
    "summary": [(run_dir, "write_text")],
}


def prepare_kill(kill: Kill) -> None:
    """Patch the functions of the moment, so that this process kills itself."""
    lock = threading.Lock()
    calls = 0

    def kill_before(call: Callable[..., Any]) -> Callable[..., Any]:
        def patched(*args: Any, **options: Any) -> Any:
            nonlocal calls
            with lock:
                calls += 1
                if calls == kill.count:
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return patched

    for owner, name in MOMENTS[kill.moment]:
        setattr(owner, name, kill_before(getattr(owner, name)))


def run_program(arguments: Sequence[str], kills: dict[int, Kill]) -> int:
    """Run the program on this rank.

    Args:
        kills: by rank.
    """
    kill = kills.get(int(os.environ["RANK"]))
    if kill is not None:
        prepare_kill(kill)
    with Path(os.devnull).open("w") as devnull:
        os.dup2(devnull.fileno(), 1)
        os.dup2(devnull.fileno(), 2)
    return train.main(arguments)


@cache
def data() -> str:
    """The option for the data root, in which the digits of all tests are."""
    folder = Path(tempfile.mkdtemp(prefix="digits-", dir=ROOT[0]))
    write_digits(folder, train=30 + 24 * 4 + 7, test=50)
    return f"--data.root={folder}"


ROOT: list[Path] = []


@pytest.fixture(autouse=True, scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> None:
    ROOT.append(tmp_path_factory.mktemp("kills"))


def start(world_size: int, setting: str, folder: Path, kills: dict[int, Kill] | None = None) -> list[Outcome]:
    """Run the program once on all ranks."""
    arguments = [*RECIPE, *SETTINGS[setting], data(), f"--run.dir={folder}"]
    return try_ranks(world_size, run_program, arguments, kills or {})


@dataclass(frozen=True)
class Result:
    """Summary and rows of a finished run, without keys that differ between equal runs."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]


def result_of(folder: Path) -> Result:
    """Read the run directory of a finished run, and check that it has no incomplete file."""
    files = {"config.yaml", "metrics.jsonl", "status.json", "summary.json"}
    assert {path.name for path in folder.iterdir()} == {*files, "checkpoints"}
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["step"], status["last_step"]) == ("finished", STEPS, STEPS)
    checkpoints = list_checkpoints(folder / "checkpoints")
    assert sorted((folder / "checkpoints").iterdir()) == checkpoints
    assert [corruption(path) for path in checkpoints] == [None] * len(checkpoints)
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Result(
        {key: value for key, value in summary.items() if key not in IGNORED_KEYS},
        [{key: value for key, value in row.items() if key not in MEASURED_ROW_KEYS} for row in rows],
    )


@cache
def uninterrupted(world_size: int, setting: str) -> Result:
    """The result of a run without kills."""
    folder = ROOT[0] / f"{setting}-{world_size}"
    outcomes = start(world_size, setting, folder)
    assert [outcome.value for outcome in outcomes] == [EXIT_DONE] * world_size, outcomes
    result = result_of(folder)
    assert result.summary["train.steps"] == STEPS
    return result


def run_with_kills(folder: Path, setting: str, *starts: tuple[int, dict[int, Kill]]) -> int:
    """Start a run several times with kills, then once without, on as many ranks as the last time.

    Args:
        starts: for each start, the number of ranks and the kills by rank.

    Returns:
        The number of ranks that were killed. A kill whose moment does not occur often enough does not happen.
    """
    killed = 0
    for world_size, kills in starts:
        for rank, outcome in enumerate(start(world_size, setting, folder, kills)):
            if rank in kills and outcome.exit_code == -signal.SIGKILL:
                killed += 1
            else:
                assert outcome.value is not None, outcome.trace  # no rank hung or ended in another way
    outcomes = start(starts[-1][0], setting, folder)
    assert [outcome.value for outcome in outcomes] == [EXIT_DONE] * len(outcomes), outcomes
    return killed


def all_ranks(world_size: int, kill: Kill) -> dict[int, Kill]:
    return dict.fromkeys(range(world_size), kill)


CASES: list[tuple[int, str, dict[int, Kill]]] = [
    (1, "shards", {0: Kill("step", 4)}),
    (1, "ddp", {0: Kill("evaluation", 6)}),
    (1, "shards", {0: Kill("disk", 9)}),
    (1, "shards", {0: Kill("disk", 60)}),
    (1, "ddp", {0: Kill("checkpoint", 4)}),
    (1, "shards", {0: Kill("row", 9)}),
    (1, "shards", {0: Kill("summary", 2)}),
    (2, "shards", {1: Kill("update", 5)}),
    (2, "ddp", {0: Kill("update", 8)}),
    (2, "shards", all_ranks(2, Kill("step", 7))),
    (2, "ddp", {0: Kill("disk", 25)}),
    (3, "ddp", {1: Kill("step", 4)}),
]


@pytest.mark.parametrize(("world_size", "setting", "kills"), CASES)
def test_a_killed_run_equals_an_uninterrupted_one(
    world_size: int, setting: str, kills: dict[int, Kill], tmp_path: Path
) -> None:
    assert run_with_kills(tmp_path / "run", setting, (world_size, kills)) == len(kills)
    assert result_of(tmp_path / "run") == uninterrupted(world_size, setting)


def test_a_run_killed_six_times_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """It is killed before its first checkpoint, at writes, while it trims and writes metrics.jsonl, and at its end."""
    kills = [Kill("step", 2), Kill("disk", 3), Kill("step", 5), Kill("trim", 1), Kill("row", 3), Kill("summary", 2)]
    assert run_with_kills(tmp_path / "run", "shards", *((1, {0: kill}) for kill in kills)) == len(kills)
    assert result_of(tmp_path / "run") == uninterrupted(1, "shards")


def test_with_shards_a_run_killed_on_two_one_and_four_ranks_has_the_bits_of_one_rank(tmp_path: Path) -> None:
    starts = [(2, {1: Kill("step", 4)}), (1, {0: Kill("disk", 30)}), (4, {2: Kill("update", 2)})]
    assert run_with_kills(tmp_path / "run", "shards", *starts) == len(starts)
    result, expected = result_of(tmp_path / "run"), uninterrupted(1, "shards")
    assert result.summary["weights_sha256"] == expected.summary["weights_sha256"]
    assert result == expected


def test_the_status_of_a_killed_run(tmp_path: Path) -> None:
    start(1, "shards", tmp_path, {0: Kill("step", 5)})
    status = read_run_status(tmp_path)
    assert (status["state"], status["step"], status["last_step"]) == ("killed", 4, STEPS)
    start(2, "shards", tmp_path, {1: Kill("step", 2)})  # resumes at step 4
    status = read_run_status(tmp_path)
    assert (status["state"], status["world_size"]) == ("failed", 2)
    assert "rank 1 has exited" in status["message"]
    start(1, "shards", tmp_path)
    assert read_run_status(tmp_path)["state"] == "finished"


# The long tests


@pytest.mark.faults
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_kills_at_every_step(world_size: int, setting: str, tmp_path: Path) -> None:
    """In each step three runs: one rank is killed before the step, one in the update, or all before the step."""
    if setting == "shards" and world_size == 3:
        setting = "six shards"
    for step in range(1, STEPS + 1):
        for number, kills in enumerate(
            (
                {step % world_size: Kill("step", step)},
                {step % world_size: Kill("update", step)},
                all_ranks(world_size, Kill("step", step)),
            )
        ):
            folder = tmp_path / f"{step}-{number}"
            assert run_with_kills(folder, setting, (world_size, kills)) == len(kills), (step, kills)
            assert result_of(folder) == uninterrupted(world_size, setting), (step, kills)


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["disk", "checkpoint", "row", "evaluation"])
def test_kills_at_every_occurrence_of_a_moment(moment: str, tmp_path: Path) -> None:
    """The last run ends before the kill."""
    for count in range(1, 1000):
        folder = tmp_path / str(count)
        killed = run_with_kills(folder, "shards", (1, {0: Kill(moment, count)}))
        assert result_of(folder) == uninterrupted(1, "shards"), count
        if not killed:
            break
    assert 10 < count < 999


MAX_COUNT = {"step": 8, "update": 8, "evaluation": 8, "row": 12, "trim": 1, "checkpoint": 12, "disk": 60, "summary": 2}
"""Largest count of a random kill: about as often as the moment occurs in a run that is resumed in its first half."""


@pytest.mark.faults
@pytest.mark.timeout(3000)
def test_three_random_kills_in_each_of_100_runs(tmp_path: Path) -> None:
    """At random moments, of random ranks, on another number of ranks at each start."""
    generator = random.Random(0)
    killed = 0
    for number in range(100):
        starts = []
        for _ in range(3):
            world_size, moment = generator.choice((1, 2, 4)), generator.choice(list(MOMENTS))
            rank, count = generator.randrange(world_size), generator.randint(1, MAX_COUNT[moment])
            starts.append((world_size, {rank: Kill(moment, count)}))
        folder = tmp_path / str(number)
        killed += run_with_kills(folder, "shards", *starts)
        assert result_of(folder) == uninterrupted(1, "shards"), starts
    print(f"{killed} of 300 kills happened")
    assert killed >= 100
