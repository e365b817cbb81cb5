"""The time left for the whole run: steps, evaluations and what comes between them, as measured."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_training import BASICS, open_trainer

from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import Topology
from mnist_dist.training import time_left
from mnist_dist.training.time_left import TimeLeft, count_multiples

EPOCH, BATCH = 100, 300


class Run:
    """A run in which a step takes `step_seconds`; the host's clock is moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, last_step: int = 400, eval_steps: int = 0) -> None:
        self.now = self.trained = 0.0
        monkeypatch.setattr(time_left, "time", SimpleNamespace(perf_counter=lambda: self.now))
        train = SimpleNamespace(eval_steps=eval_steps, batch_size=BATCH)
        self.progress = SimpleNamespace(step=0)
        self.state: Any = SimpleNamespace(
            progress=self.progress, last_step=last_step, sampler=range(EPOCH), config=SimpleNamespace(train=train)
        )
        self.left = TimeLeft(self.state, held_out=1000, tested=2000, seconds=0.0)

    def train(self, steps: int, step_seconds: float) -> float:
        """Train some steps, and estimate."""
        self.progress.step += steps
        self.now += steps * step_seconds
        self.trained += steps * step_seconds
        return self.left.estimate(self.trained)

    def evaluate(self, seconds: float) -> None:
        """Evaluate the held-out images."""
        with self.left.evaluation(1000):
            self.now += seconds


def test_before_the_first_evaluation_its_time_is_derived_from_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    images = 4 * 1000 + 2000  # four evaluations and the test
    assert run.train(50, 0.3) == pytest.approx(350 * 0.3 + images * 0.001 / 3)


def test_evaluations_and_pauses_count_as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    run.train(50, 0.3)
    run.train(50, 0.3)
    run.evaluate(seconds=8)
    run.now += 5  # a checkpoint, or media
    assert run.train(50, 0.3) == pytest.approx(250 * (0.3 + 5 / 150) + (3 * 1000 + 2000) * 0.008)


def test_the_warm_up_is_forgotten_and_the_speed_is_that_of_the_last_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, last_step=100)
    evaluated = (1000 + 2000) * 0.001
    run.evaluate(seconds=1)
    assert run.train(10, 9) == pytest.approx(90 * 9 + evaluated)
    assert run.train(10, 1) == pytest.approx(80 * 1 + evaluated)
    for _ in range(20):
        last = run.train(2, 2)
    assert last == pytest.approx(40 * 2 + evaluated)


def test_a_rollback_measures_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    run.train(50, 0.3)
    run.progress.step = 20
    assert math.isnan(run.left.estimate(run.trained))
    assert run.train(10, 0.1) > 370 * 0.1


@pytest.mark.parametrize(
    ("last_step", "eval_steps", "step", "evaluations"),
    [
        (400, 0, 0, 4),
        (400, 0, 100, 3),
        (250, 0, 0, 3),
        (400, 30, 0, 4 + 13 - 1),
        (240, 30, 150, 1 + 3),
        (400, 0, 400, 0),
    ],
)
def test_evaluations_that_are_left(
    last_step: int, eval_steps: int, step: int, evaluations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(monkeypatch, last_step, eval_steps)
    assert run.left.images_to_evaluate(step) == evaluations * 1000 + 2000


def test_multiples() -> None:
    assert [count_multiples(5, 0, 4), count_multiples(5, 0, 5), count_multiples(5, 5, 15)] == [0, 1, 2]


def test_the_trainer_measures_its_evaluations(tmp_path: Path) -> None:
    config = load([*BASICS, "--train.batch_size=20", "--train.epochs=2", "--train.eval_steps=1"]).config
    with start_runtime(config, Topology()) as runtime:
        trainer = open_trainer(runtime, config, tmp_path, (40, 30))
        trainer.train()
        assert trainer.time_left.evaluated_images == 4 * 30
        assert trainer.time_left.images_to_evaluate(trainer.progress.step) == 0
