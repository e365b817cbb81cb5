"""A rank that is slow, in real processes: one warning, one alert and a metric, with its phase; none for equal ranks.

The clock of each rank is the test's, so that a busy machine changes nothing.
"""

from __future__ import annotations

import platform
import threading
from pathlib import Path
from typing import Any

import pytest
from harness import run_ranks
from small_training import BASICS, open_trainer

from mnist_dist.config.loader import load
from mnist_dist.console.console import Console
from mnist_dist.data import loader
from mnist_dist.distributed import ddp, fixed_shards, step_timer
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.step_timer import EventTimer
from mnist_dist.distributed.topology import read_topology

BASE, DELAY = 0.1, 0.1
"""Seconds of each step of each rank, and those that the slow rank adds: nothing else takes time."""
PHASES = {
    "data": "gathering the batch",
    "compute": "the forward and backward pass",
    "optimizer": "the optimizer's update",
    "other": "what lies between two steps",
}
FIRST, SPELL = 2, 6
"""Steps before the first spell. A spell is three slow steps and three that are not."""
STEPS = FIRST + SPELL * len(PHASES)
STRATEGIES = {
    "shards": ("--train.shards=6", "--run.threads=2"),
    "ddp": ("--train.shards=0", "--train.accumulate=2"),
    "events": ("--train.shards=0",),
}


class Clock:
    """Stands in for the module `time`: it goes on only where the test says so."""

    def __init__(self) -> None:
        self.now, self.lock = 0.0, threading.Lock()

    def perf_counter(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        with self.lock:  # shards are computed in threads
            self.now += seconds


CLOCK = Clock()


class HostEvent:
    """An event of a GPU that is done with its work as soon as it is launched."""

    def record(self) -> None:
        self.seconds = CLOCK.now

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: HostEvent) -> float:
        return 1000 * (end.seconds - self.seconds)


class Lines(Console):
    """Keeps what is printed, and delays each step."""

    def __init__(self, delay: Any) -> None:
        self.delay = delay
        self.lines: list[tuple[int, str]] = []
        self.step = 0

    def progress(self, step: int, epoch: int) -> None:
        self.step = step
        CLOCK.advance(BASE)
        self.delay("other", step - 1)

    def print(self, text: str) -> None:
        self.lines.append((self.step, text))

    def warn(self, text: str) -> None:
        self.lines.append((self.step, f"warning: {text}"))


def train(strategy: str, slow_rank: int, folder: Path) -> tuple[list[tuple[int, str]], list[Any], list[dict[str, Any]]]:
    """Train with a rank that is slow in one phase after the other: what it printed, its alerts, its rows."""
    topology = read_topology()
    setattr(step_timer, "time", CLOCK)  # noqa: B010 - mypy knows a module's type; in a process of its own
    arguments = [*BASICS, "--train.batch_size=12", "--train.epochs=1", *STRATEGIES[strategy]]
    config = load(arguments, topology.world_size).config
    steps = {phase: range(FIRST + SPELL * i, FIRST + SPELL * i + 3) for i, phase in enumerate(PHASES)}

    def delay(phase: str, step: int) -> None:
        if topology.rank == slow_rank and step in steps[phase]:
            CLOCK.advance(DELAY)

    rows: list[dict[str, Any]] = []
    with start_runtime(config, topology) as runtime:
        if strategy == "events":
            runtime.step_timer = EventTimer(HostEvent)
        trainer = open_trainer(runtime, config, folder, (12 * STEPS, 20), rows=rows)

        def slow(phase: str, owner: Any, name: str) -> None:
            call = getattr(owner, name)

            def delayed(*arguments: Any) -> Any:
                delay(phase, trainer.progress.step)
                return call(*arguments)

            setattr(owner, name, delayed)

        slow("data", loader, "normalize")
        slow("compute", ddp, "image_losses")
        slow("compute", fixed_shards, "image_losses")
        slow("optimizer", trainer.train_step.guard, "before_update")
        lines, alerts = Lines(delay), list[Any]()
        trainer.console = trainer.metric_logger.console = lines
        trainer.metric_logger.tracker.alert = lambda *event: alerts.append(event)  # type: ignore[method-assign]
        trainer.train()
    return lines.lines, alerts, [row for row in rows if "step_seconds" in row]


@pytest.mark.parametrize(("strategy", "ranks"), [("shards", 3), ("ddp", 2), ("events", 2)])
def test_a_slow_rank_is_named_with_its_phase(strategy: str, ranks: int, tmp_path: Path) -> None:
    for lines, alerts, rows in run_ranks(ranks, train, strategy, 1, tmp_path):
        assert [step for step, _ in lines] == [FIRST + 3 * i for i in range(1, 2 * len(PHASES) + 1)]
        for (_, began), (_, ended), alert, name in zip(lines[::2], lines[1::2], alerts, PHASES.values(), strict=True):
            assert began.startswith(f"warning: rank 1 on {platform.node()} holds up the others: ")
            assert f"it spends longer on {name}: " in began
            assert ended == f"rank 1 on {platform.node()} keeps up again"
            assert alert == ("straggler", began.removeprefix("warning: "), "WARN")
        behind = [row["step"] for row in rows if row["step_seconds.stragglers"]]
        assert behind == [FIRST + SPELL * i + 3 + j for i in range(len(PHASES)) for j in range(3)]
        slow = rows[FIRST + 2]
        assert slow["step_seconds.slowest_rank"] == 1
        assert 1.5 < slow["step_seconds.ratio"] == pytest.approx(slow["step_seconds.most"] / slow["step_seconds.least"])


def test_equal_ranks_raise_no_alarm(tmp_path: Path) -> None:
    for lines, alerts, rows in run_ranks(2, train, "shards", -1, tmp_path):
        assert lines == alerts == []
        assert not any(row["step_seconds.stragglers"] for row in rows)
