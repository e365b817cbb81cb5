"""Rows of metrics: what was learned from since the row before, and whatever else is recorded of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mnist_dist.checkpoint.state import TrainProgress
from mnist_dist.console.console import Console
from mnist_dist.distributed.comm_timer import CommTimer
from mnist_dist.distributed.device import peak_memory
from mnist_dist.models.summary import count_flops
from mnist_dist.training.metrics import Metrics
from mnist_dist.training.state import TrainingState

Row = dict[str, Any]


class MetricLogger:
    """Writes rows of the present step. Every process must call its methods alike.

    Args:
        state: whose counts are recorded, and whose position the rows bear.
        clock: of training, for the rate.
    """

    def __init__(self, state: TrainingState, console: Console, timer: TrainTimer) -> None:
        self.state, self.console, self.timer = state, console, timer
        self.record: Callable[[Row], None] = lambda row: None
        self.flops = 3 * count_flops(state.holding.outline)  # to learn from one image: backward is two forward passes
        self.peak = 0.0  # FLOP/s of all processes at most; 0 where it was not measured
        self.images = 0  # of all processes, since the last row
        self.start = 0.0  # of the rate, in seconds of training
        self.first_step = 0  # that of the last row

    def begin_window(self) -> None:
        """The next row's rate counts from here."""
        self.start, self.images, self.first_step = self.timer.seconds, 0, self.state.progress.step
        self.state.runtime.comm_timer.take()

    def write(self, row: Row) -> None:
        """Record metrics of the present step."""
        progress = self.state.progress
        self.record({"step": progress.step, "epoch": progress.epoch + 1, "time": time.time(), **row})

    def log_window(self, lr: float) -> None:
        """Sum the metrics of the steps since the last row over all processes, record and show them."""
        metrics = self.state.total(self.state.window)
        row = {
            "train.loss": metrics.loss,
            "train.accuracy": metrics.accuracy,
            "lr": lr,
            **self.state.norms.row(),
            **self.speed(),
        }
        self.write(row)
        self.console.metrics(row)
        self.state.epoch_counts.merge(self.state.window)
        self.state.window.clear()
        self.state.norms.clear()
        self.begin_window()

    def speed(self) -> Row:
        """How fast the steps since the last row were, and the memory of this process at most."""
        seconds = max(self.timer.seconds - self.start, 1e-9)
        steps = self.state.progress.step - self.first_step
        achieved = self.flops * self.images / seconds
        return {
            "images_per_second": self.images / seconds,
            "step_seconds": seconds / steps,
            **self.spread(seconds, steps),
            "flops_per_second": achieved,
            **({"mfu": achieved / self.peak} if self.peak else {}),
            "memory.peak_bytes": peak_memory(self.state.runtime.device),
        }

    def spread(self, seconds: float, steps: int) -> Row:
        """Seconds of a step that the quickest and the slowest process spend on their own work, and the latter's rank.

        That is the time of the steps without waiting for other processes: with fixed shards, outside all exchanges;
        with DistributedDataParallel, whose exchanges overlap with backward, also without the end of backward, when this
        process has all its own gradients and those of others are still to come. Empty for one process; on a GPU, where
        the host sees nothing of the waiting; and by FSDP2, whose exchanges are all over the forward and backward pass.

        Args:
            seconds: that the steps took.
        """
        runtime = self.state.runtime
        if runtime.world_size == 1 or runtime.device.type != "cpu" or runtime.topology.fsdp:
            return {}
        own = max(seconds - runtime.comm_timer.take(), 0.0) / steps
        of_ranks = runtime.all_gather(torch.tensor([[own]], dtype=torch.float64)).flatten().tolist()
        return {
            "step_seconds.least": min(of_ranks),
            "step_seconds.most": max(of_ranks),
            "step_seconds.slowest_rank": of_ranks.index(max(of_ranks)),
        }

    def log_epoch(self, lr: float, split: str, held_out_metrics: Metrics) -> None:
        """The same for the whole epoch, whose windows are all recorded, with what the evaluation at its end found."""
        progress, epoch = self.state.progress, self.state.total(self.state.epoch_counts)
        self.write(epoch.row("epoch.train") | epoch.details("epoch.train") | {"epoch.seconds": progress.seconds})
        facts = {"epoch": progress.epoch + 1, "split": split, "lr": lr, "seconds": progress.seconds}
        self.console.epoch(facts | epoch.row("epoch.train") | held_out_metrics.row(split))
        self.state.epoch_counts.clear()


class TrainTimer:
    """Adds the time while it runs to a position's `seconds`, and has waits for other processes counted meanwhile."""

    def __init__(self, progress: TrainProgress, comm_timer: CommTimer) -> None:
        self.progress, self.comm_timer = progress, comm_timer
        self.started = 0.0  # by the system's clock; 0 while it stands

    @property
    def seconds(self) -> float:
        """Time spent in training steps so far, by this process and those it goes on from."""
        return self.progress.seconds + (time.perf_counter() - self.started if self.started else 0.0)

    def start(self) -> None:
        """Time counts from here."""
        self.started, self.comm_timer.counting = time.perf_counter(), True

    def stop(self) -> None:
        """Time no longer counts; the position says how much did."""
        self.progress.seconds, self.started = self.seconds, 0.0
        self.comm_timer.counting = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in here does not count."""
        was_running = bool(self.started)
        self.stop()
        yield
        if was_running:
            self.start()
