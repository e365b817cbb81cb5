"""The time that a run still needs, from the measured speed of its steps and of its evaluations."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from mnist_dist.training.state import TrainingState

ROWS = 10
"""Rows that the speed is measured over. The first one, in which a run warms up, is left out once there are others."""
FORWARD_SHARE = 1 / 3
"""Of an image's training step: to evaluate it takes a forward pass, to learn from it a backward pass too."""


class TimeLeft:
    """Estimates the seconds to the end of a run.

    Args:
        state: training state, whose progress is that of the start.
        held_out: images that each evaluation takes.
        tested: images that the test at the end takes; 0 if the held-out set is the test set.
        seconds: seconds of training so far, as `TrainTimer.seconds`.
    """

    def __init__(self, state: TrainingState, held_out: int, tested: int, seconds: float) -> None:
        self.state, self.held_out, self.tested = state, held_out, tested
        self.start = time.perf_counter(), seconds, state.progress.step
        self.rows = deque([(state.progress.step, seconds)], maxlen=ROWS)
        self.evaluated_images = 0
        self.evaluated_seconds = 0.0

    @contextmanager
    def evaluation(self, images: int) -> Iterator[None]:
        """Measure this block, which evaluates some images."""
        start = time.perf_counter()
        yield
        self.evaluated_seconds += time.perf_counter() - start
        self.evaluated_images += images

    def estimate(self, seconds: float) -> float:
        """Seconds to the end of the run, the test included; nan if no step was measured.

        Args:
            seconds: seconds of training so far.
        """
        step = self.state.progress.step
        if step <= self.rows[-1][0]:  # a rollback
            self.rows.clear()
            self.rows.append((step, seconds))
            return math.nan
        if len(self.rows) == 2 and self.rows[0][0] == self.start[2]:
            self.rows.popleft()
        self.rows.append((step, seconds))
        first_step, first_seconds = self.rows[0]
        step_seconds = (seconds - first_seconds) / (step - first_step) + self.pause_seconds(step, seconds)
        training = (self.state.last_step - step) * step_seconds
        return training + self.images_to_evaluate(step) * self.evaluation_seconds(step_seconds)

    def pause_seconds(self, step: int, seconds: float) -> float:
        """Seconds for each step that were neither training nor an evaluation: checkpoints, media, rows."""
        start, start_seconds, start_step = self.start
        paused = time.perf_counter() - start - (seconds - start_seconds) - self.evaluated_seconds
        return max(paused, 0.0) / max(step - start_step, 1)

    def evaluation_seconds(self, step_seconds: float) -> float:
        """Seconds to evaluate an image: as measured, or derived from a training step before the first evaluation."""
        if self.evaluated_images:
            return self.evaluated_seconds / self.evaluated_images
        return FORWARD_SHARE * step_seconds / self.state.config.train.batch_size

    def images_to_evaluate(self, step: int) -> int:
        """Images that are still to be evaluated after a step, those of the test included."""
        last, epoch, every = self.state.last_step, len(self.state.sampler), self.state.config.train.eval_steps
        evaluations = count_multiples(epoch, step, last)
        if every:
            evaluations += count_multiples(every, step, last) - count_multiples(math.lcm(epoch, every), step, last)
        if last % epoch and not (every and last % every == 0):
            evaluations += 1  # at the last step
        return evaluations * self.held_out + self.tested


def count_multiples(number: int, after: int, until: int) -> int:
    """Multiples of a number from `after` + 1 to `until`."""
    return until // number - after // number
