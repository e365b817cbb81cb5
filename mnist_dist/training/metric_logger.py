"""Compute rows of metrics from counts and times, and log them to metrics.jsonl, the tracker and the console."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mnist_dist.checkpoint.state import TrainProgress
from mnist_dist.console.console import Console
from mnist_dist.distributed.comm_timer import CommTimer
from mnist_dist.distributed.device import peak_memory
from mnist_dist.tracking.metrics_file import MetricsFile
from mnist_dist.tracking.tracker import Tracker
from mnist_dist.training.metrics import Metrics
from mnist_dist.training.state import TrainingState

Row = dict[str, Any]


class MetricLogger:
    """Logs metrics of the current step. Every rank must call its methods.

    Args:
        state: its counts and norms are logged; its progress gives the step and the epoch of each row.
        console: shows the rows.
        tracker: gets every row that metrics.jsonl gets.
        metrics_file: metrics.jsonl; on the main process only.
        peak_flops: peak FLOP/s of all ranks together, for the MFU; 0 if it was not measured.
    """

    def __init__(
        self,
        state: TrainingState,
        console: Console,
        tracker: Tracker,
        metrics_file: MetricsFile | None = None,
        peak_flops: float = 0.0,
    ) -> None:
        self.state, self.console, self.tracker, self.metrics_file = state, console, tracker, metrics_file
        self.peak_flops = peak_flops
        self.timer = TrainTimer(state.progress, state.runtime.comm_timer)
        self.window_images = 0  # of all ranks, since the last row
        self.window_start = 0.0  # seconds of training
        self.window_step = 0
        self.begin_window()

    def begin_window(self) -> None:
        """Measure the speed of the next row from here on."""
        self.window_start, self.window_images = self.timer.seconds, 0
        self.window_step = self.state.progress.step
        self.state.runtime.comm_timer.pop_seconds()

    def add_images(self, images: int) -> None:
        """Add the images of a global batch to those of the next row."""
        self.window_images += images

    def write(self, row: Row) -> None:
        """Log a row, with step, epoch and time added."""
        progress = self.state.progress
        full = {"step": progress.step, "epoch": progress.epoch + 1, "time": time.time(), **row}
        if self.metrics_file is not None:
            self.metrics_file.write(full)
        self.tracker.log(full)

    def rewind(self, step: int) -> None:
        """Remove the rows of later steps, after a rollback to this step."""
        if self.metrics_file is not None:
            self.metrics_file.rewind(step)
        self.begin_window()

    def log_window(self, metrics: Metrics, lr: float) -> None:
        """Log the training metrics of the steps since the last row, over all ranks.

        Args:
            metrics: those of the state's `window`.
            lr: learning rate of the last update.
        """
        row = {
            "train.loss": metrics.loss,
            "train.accuracy": metrics.accuracy,
            "lr": lr,
            **self.state.norms.row(),
            **self.throughput(),
        }
        self.write(row)
        self.console.metrics(row)
        self.state.epoch_counts.merge(self.state.window)
        self.state.window.clear()
        self.state.norms.clear()
        self.begin_window()

    def throughput(self) -> Row:
        """Speed since the last row, and peak memory of this rank.

        Keys: `images_per_second` and `flops_per_second` of all ranks, `step_seconds` with its spread over the ranks,
        `mfu` (a fraction) if the peak was measured, and `memory.peak_bytes`.
        """
        seconds = max(self.timer.seconds - self.window_start, 1e-9)
        steps = max(self.state.progress.step - self.window_step, 1)  # 0 if a resumed run ends before its first step
        achieved = self.state.flops_per_image * self.window_images / seconds
        return {
            "images_per_second": self.window_images / seconds,
            "step_seconds": seconds / steps,
            **self.step_seconds_of_ranks(seconds, steps),
            "flops_per_second": achieved,
            **({"mfu": achieved / self.peak_flops} if self.peak_flops else {}),
            "memory.peak_bytes": peak_memory(self.state.runtime.device),
        }

    def step_seconds_of_ranks(self, seconds: float, steps: int) -> Row:
        """Mean compute time of a step, in seconds, on the fastest and the slowest rank, and which rank is the slowest.

        Compute time is the time outside collectives, as `CommTimer` measures them. DDP overlaps its all-reduce with
        backward: there, the time from a rank's last gradient to the end of backward counts as communication.

        Args:
            seconds: time that the steps took, collectives included.
            steps: number of steps.

        Returns:
            An empty row if the times are not known: on one rank; on a GPU, since the host does not see the collectives;
            and with FSDP2, which runs collectives throughout the forward and backward pass.
        """
        runtime = self.state.runtime
        if runtime.world_size == 1 or runtime.device.type != "cpu" or runtime.topology.fsdp:
            return {}
        local = max(seconds - runtime.comm_timer.pop_seconds(), 0.0) / steps
        ranks = runtime.all_gather(torch.tensor([[local]], dtype=torch.float64)).flatten().tolist()
        return {
            "step_seconds.least": min(ranks),
            "step_seconds.most": max(ranks),
            "step_seconds.slowest_rank": ranks.index(max(ranks)),
        }

    def log_epoch(self, lr: float, split: str, held_out: Metrics) -> None:
        """Log the training metrics of the epoch; the console shows them beside those of the evaluation at its end.

        Args:
            lr: learning rate of the last update.
            split: name of the held-out set.
            held_out: metrics on the held-out set.
        """
        progress, epoch = self.state.progress, self.state.reduce_counts(self.state.epoch_counts)
        self.write(epoch.row("epoch.train") | epoch.details("epoch.train") | {"epoch.seconds": progress.seconds})
        facts = {"epoch": progress.epoch + 1, "split": split, "lr": lr, "seconds": progress.seconds}
        self.console.epoch(facts | epoch.row("epoch.train") | held_out.row(split))
        self.state.epoch_counts.clear()


class TrainTimer:
    """Measures the time spent in training steps and adds it to `progress.seconds`.

    `comm_timer` is enabled while this timer runs, so that it measures collectives of training steps only.
    """

    def __init__(self, progress: TrainProgress, comm_timer: CommTimer) -> None:
        self.progress, self.comm_timer = progress, comm_timer
        self.started = 0.0  # time.perf_counter(); 0 while stopped

    @property
    def seconds(self) -> float:
        """Seconds spent in training steps, those before a resume included."""
        return self.progress.seconds + (time.perf_counter() - self.started if self.started else 0.0)

    def start(self) -> None:
        """Start the timer."""
        self.started = time.perf_counter()
        self.comm_timer.enable()

    def stop(self) -> None:
        """Stop the timer and update `progress.seconds`."""
        self.progress.seconds, self.started = self.seconds, 0.0
        self.comm_timer.disable()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude this block from training time."""
        was_running = bool(self.started)
        self.stop()
        yield
        if was_running:
            self.start()
