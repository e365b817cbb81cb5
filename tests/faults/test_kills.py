"""Killed anywhere and started again by the same command, a run ends as one that nothing ever disturbed.

Real processes run the real program; what kills them is the system's SIGKILL, at a moment that the test chooses: in the
middle of a step, of an evaluation, of a checkpoint being written, of the records.
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
from mnist_dist.distributed.ddp import DDPStrategy
from mnist_dist.distributed.fixed_shards import FixedShardStrategy
from mnist_dist.tracking import metrics_file
from mnist_dist.training import evaluation
from mnist_dist.training import train_step as train_step
from mnist_dist.utils.errors import EXIT_DONE

STEPS = 10
"""Two epochs of five batches, the last of which is ragged."""
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
CHANCE = MEASURED_SUMMARY_KEYS | {"run_id", "resumed_from", "world_size"}


@dataclass(frozen=True)
class Kill:
    """When a rank ends itself: the `count`th time (from 1) that it comes to a moment."""

    moment: str
    count: int


MOMENTS: dict[str, list[tuple[Any, str]]] = {
    # Before each call of one of these, in whatever thread.
    "step": [(train_step.TrainStep, "step")],
    "update": [(DDPStrategy, "forward_backward"), (FixedShardStrategy, "reduce_shards")],
    "evaluation": [(evaluation.F, "cross_entropy")],
    "row": [(metrics_file, "append")],
    "trim": [(metrics_file, "trim")],
    "checkpoint": [(manager, "save_checkpoint"), (manager, "serialize"), (manager, "recover")],
    "disk": [(os, "fsync"), (os, "mkdir"), (Path, "rename"), (manager.shutil, "rmtree"), (Path, "replace")],
    "summary": [(run_dir, "write_text")],
}


def arm(kill: Kill) -> None:
    """Have this process end itself."""
    lock = threading.Lock()
    calls = 0

    def before(call: Callable[..., Any]) -> Callable[..., Any]:
        def killing(*args: Any, **options: Any) -> Any:
            nonlocal calls
            with lock:
                calls += 1
                if calls == kill.count:
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return killing

    for owner, name in MOMENTS[kill.moment]:
        setattr(owner, name, before(getattr(owner, name)))


def program(arguments: Sequence[str], kills: dict[int, Kill]) -> int:
    """The program on one rank, with what is to happen to it."""
    kill = kills.get(int(os.environ["RANK"]))
    if kill is not None:
        arm(kill)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    return train.main(arguments)


@cache
def data() -> str:
    """The option that names the data: digits made up once."""
    folder = Path(tempfile.mkdtemp(prefix="digits-", dir=ROOT[0]))
    write_digits(folder, train=30 + 24 * 4 + 7, test=50)
    return f"--data.root={folder}"


ROOT: list[Path] = []


@pytest.fixture(autouse=True, scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> None:
    ROOT.append(tmp_path_factory.mktemp("kills"))


def start(world_size: int, setting: str, folder: Path, kills: dict[int, Kill] | None = None) -> list[Outcome]:
    """Start the program once."""
    arguments = [*RECIPE, *SETTINGS[setting], data(), f"--run.dir={folder}"]
    return try_ranks(world_size, program, arguments, kills or {})


@dataclass(frozen=True)
class End:
    """What a run left: what its summary and its rows say, without what clocks and chance decide."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]


def end_of(folder: Path) -> End:
    """Read a finished run's folder, in which nothing half-done may be left."""
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints"}
    saved = list_checkpoints(folder / "checkpoints")
    assert sorted((folder / "checkpoints").iterdir()) == saved
    assert [corruption(path) for path in saved] == [None] * len(saved)
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return End(
        {key: value for key, value in summary.items() if key not in CHANCE},
        [{key: value for key, value in row.items() if key not in MEASURED_ROW_KEYS} for row in rows],
    )


@cache
def undisturbed(world_size: int, setting: str) -> End:
    """A run that nothing happened to."""
    folder = ROOT[0] / f"{setting}-{world_size}"
    outcomes = start(world_size, setting, folder)
    assert [outcome.value for outcome in outcomes] == [EXIT_DONE] * world_size, outcomes
    end = end_of(folder)
    assert end.summary["train.steps"] == STEPS
    return end


def survive(folder: Path, setting: str, *starts: tuple[int, dict[int, Kill]]) -> int:
    """Start a run again and again with kills, then once without, by as many processes as the last time.

    Returns:
        How many kills came to their moment.
    """
    fallen = 0
    for world_size, kills in starts:
        for rank, outcome in enumerate(start(world_size, setting, folder, kills)):
            if rank in kills and outcome.exit_code == -signal.SIGKILL:
                fallen += 1
            else:
                assert outcome.value is not None, outcome.trace  # nobody hung, nobody died of anything else
    outcomes = start(starts[-1][0], setting, folder)
    assert [outcome.value for outcome in outcomes] == [EXIT_DONE] * len(outcomes), outcomes
    return fallen


def everybody(world_size: int, kill: Kill) -> dict[int, Kill]:
    return dict.fromkeys(range(world_size), kill)


SHORT: list[tuple[int, str, dict[int, Kill]]] = [
    (1, "shards", {0: Kill("step", 4)}),
    (1, "ddp", {0: Kill("evaluation", 6)}),
    (1, "shards", {0: Kill("disk", 9)}),
    (1, "shards", {0: Kill("disk", 60)}),
    (1, "ddp", {0: Kill("checkpoint", 4)}),
    (1, "shards", {0: Kill("row", 9)}),
    (1, "shards", {0: Kill("summary", 2)}),
    (2, "shards", {1: Kill("update", 5)}),
    (2, "ddp", {0: Kill("update", 8)}),
    (2, "shards", everybody(2, Kill("step", 7))),
    (2, "ddp", {0: Kill("disk", 25)}),
    (3, "ddp", {1: Kill("step", 4)}),
]


@pytest.mark.parametrize(("world_size", "setting", "kills"), SHORT)
def test_a_killed_run_ends_as_one_undisturbed(
    world_size: int, setting: str, kills: dict[int, Kill], tmp_path: Path
) -> None:
    assert survive(tmp_path / "run", setting, (world_size, kills)) == len(kills)
    assert end_of(tmp_path / "run") == undisturbed(world_size, setting)


def test_killed_again_and_again(tmp_path: Path) -> None:
    """Before it had saved anything, while it restored, in the middle of its records, at its end."""
    kills = [Kill("step", 2), Kill("disk", 3), Kill("step", 5), Kill("trim", 1), Kill("row", 3), Kill("summary", 2)]
    assert survive(tmp_path / "run", "shards", *((1, {0: kill}) for kill in kills)) == len(kills)
    assert end_of(tmp_path / "run") == undisturbed(1, "shards")


def test_killed_at_each_number_of_processes_the_shards_give_the_same_bits(tmp_path: Path) -> None:
    starts = [(2, {1: Kill("step", 4)}), (1, {0: Kill("disk", 30)}), (4, {2: Kill("update", 2)})]
    assert survive(tmp_path / "run", "shards", *starts) == len(starts)
    end, whole = end_of(tmp_path / "run"), undisturbed(1, "shards")
    assert end.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert end == whole


# The long version


@pytest.mark.faults
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_killed_at_every_step(world_size: int, setting: str, tmp_path: Path) -> None:
    """Of one rank, another one each time, and of all; once in each step and once in each update."""
    if setting == "shards" and world_size == 3:
        setting = "six shards"
    for step in range(1, STEPS + 1):
        for number, kills in enumerate(
            (
                {step % world_size: Kill("step", step)},
                {step % world_size: Kill("update", step)},
                everybody(world_size, Kill("step", step)),
            )
        ):
            folder = tmp_path / f"{step}-{number}"
            assert survive(folder, setting, (world_size, kills)) == len(kills), (step, kills)
            assert end_of(folder) == undisturbed(world_size, setting), (step, kills)


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["disk", "checkpoint", "row", "evaluation"])
def test_killed_at_every_touch_of_the_disk_and_every_batch_of_an_evaluation(moment: str, tmp_path: Path) -> None:
    """Until the kill no longer comes, because the run has ended before it."""
    for count in range(1, 1000):
        folder = tmp_path / str(count)
        fallen = survive(folder, "shards", (1, {0: Kill(moment, count)}))
        assert end_of(folder) == undisturbed(1, "shards"), count
        if not fallen:
            break
    assert 10 < count < 999


LAST = {"step": 8, "update": 8, "evaluation": 8, "row": 12, "trim": 1, "checkpoint": 12, "disk": 60, "summary": 2}
"""How often a moment comes at least in a run that goes on from its first half, or so."""


@pytest.mark.faults
@pytest.mark.timeout(3000)
def test_hundreds_of_random_kills(tmp_path: Path) -> None:
    """Several in each run, at random moments, of random ranks, with another number of processes each time."""
    chance = random.Random(0)
    fallen = 0
    for number in range(100):
        starts = []
        for _ in range(3):
            world_size, moment = chance.choice((1, 2, 4)), chance.choice(list(MOMENTS))
            starts.append((world_size, {chance.randrange(world_size): Kill(moment, chance.randint(1, LAST[moment]))}))
        folder = tmp_path / str(number)
        fallen += survive(folder, "shards", *starts)
        assert end_of(folder) == undisturbed(1, "shards"), starts
    print(f"{fallen} kills of 300 came to their moment")
    assert fallen >= 100
