"""Compute rows of metrics from counts and times, and log them to metrics.jsonl, the tracker and the console."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from mnist_dist.checkpoint.state import TrainProgress
from mnist_dist.console.console import Console
from mnist_dist.console.formatting import format_loss, format_percent
from mnist_dist.distributed.device import peak_memory
from mnist_dist.distributed.step_timer import OWN_PHASES, EventTimer, NullTimer, StepTimer
from mnist_dist.tracking.metrics_file import MetricsFile
from mnist_dist.tracking.status_file import StatusFile
from mnist_dist.tracking.tracker import Tracker
from mnist_dist.training.metrics import Metrics
from mnist_dist.training.state import TrainingState
from mnist_dist.training.stragglers import StragglerDetector, Times, ratios_to_others

Row = dict[str, Any]


class MetricLogger:
    """Logs metrics of the current step. Every rank must call its methods.

    Args:
        state: its counts and norms are logged; its progress gives the step and the epoch of each row.
        console: shows the rows.
        tracker: gets every row that metrics.jsonl gets.
        metrics_file: metrics.jsonl; on the main process only.
        peak_flops: peak FLOP/s of all ranks together, for the MFU; 0 if it was not measured.
        status_file: status.json; on the main process only.
    """

    def __init__(
        self,
        state: TrainingState,
        console: Console,
        tracker: Tracker,
        metrics_file: MetricsFile | None = None,
        peak_flops: float = 0.0,
        status_file: StatusFile | None = None,
    ) -> None:
        self.state, self.console, self.tracker, self.metrics_file = state, console, tracker, metrics_file
        self.peak_flops, self.status_file = peak_flops, status_file
        self.step_timer = state.runtime.step_timer
        self.timer = TrainTimer(state.progress, self.step_timer)
        self.hosts: list[str] = state.runtime.all_gather_object(platform.node())
        self.straggler_detector = StragglerDetector(self.hosts)
        self.window_images = 0  # of all ranks, since the last row
        self.window_start = 0.0  # seconds of training
        self.window_step = 0
        self.begin_window()

    def begin_window(self) -> None:
        """Measure the speed of the next row from here on."""
        self.window_start, self.window_images = self.timer.seconds, 0
        self.window_step = self.state.progress.step
        self.step_timer.reset()

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

    def log_window(self, metrics: Metrics, lr: float, seconds_left: float = math.nan) -> None:
        """Log the training metrics of the steps since the last row, over all ranks.

        Args:
            metrics: those of the state's `window`.
            lr: learning rate of the last update.
            seconds_left: estimate of the time to the end of the run; nan if it is not known.
        """
        times = self.gather_step_times()
        row = {
            "train.loss": metrics.loss,
            "train.accuracy": metrics.accuracy,
            "lr": lr,
            **self.state.norms.row(),
            **self.throughput(),
            **self.check_stragglers(times),
        }
        self.write(row)
        self.console.time_left(seconds_left)
        self.console.metrics(row)
        self.write_status(row, times, seconds_left)
        self.state.epoch_counts.merge(self.state.window)
        self.state.window.clear()
        self.state.norms.clear()
        self.begin_window()

    def throughput(self) -> Row:
        """Speed since the last row, and peak memory of this rank.

        Keys: `images_per_second` and `flops_per_second` of all ranks, `step_seconds`, `mfu` (a fraction) if the peak
        was measured, and `memory.peak_bytes`.
        """
        seconds = max(self.timer.seconds - self.window_start, 1e-9)
        steps = max(self.state.progress.step - self.window_step, 1)  # 0 if a resumed run ends before its first step
        achieved = self.state.flops_per_image * self.window_images / seconds
        return {
            "images_per_second": self.window_images / seconds,
            "step_seconds": seconds / steps,
            "flops_per_second": achieved,
            **({"mfu": achieved / self.peak_flops} if self.peak_flops else {}),
            "memory.peak_bytes": peak_memory(self.state.runtime.device),
        }

    # Ranks

    def gather_step_times(self) -> list[Times]:
        """Own seconds of a step since the last row, of each rank by phase, without communication; empty if not known.

        They are not known on one rank, and with FSDP2 (see `step_timer.build_step_timer`).
        """
        if isinstance(self.step_timer, NullTimer):
            return []
        steps = self.state.progress.step - self.window_step
        phases = self.step_timer.collect()
        own = [phases[phase] / steps for phase in OWN_PHASES]
        runtime = self.state.runtime
        if isinstance(self.step_timer, EventTimer):  # as objects, which are not exchanged on the device
            ranks = runtime.all_gather_object(own)
        else:
            ranks = runtime.all_gather(torch.tensor([own], dtype=torch.float64)).tolist()
        return [dict(zip(OWN_PHASES, each, strict=True)) for each in ranks]

    def check_stragglers(self, times: list[Times]) -> Row:
        """Warn of ranks that are behind since this row, and send an alert; say which no longer are.

        Args:
            times: of `gather_step_times`.

        Returns:
            `step_seconds.least` and `.most` over the ranks, `.slowest_rank`, its `.ratio` to the median of the others,
            and `.stragglers`, the number of ranks that are behind. Empty without times.
        """
        if not times:
            return {}
        began, ended = self.straggler_detector.update(times, self.state.progress.step - self.window_step)
        if began:
            others = f"; so do ranks {', '.join(str(each.rank) for each in began[1:])}" if len(began) > 1 else ""
            text = began[0].describe() + others
            self.console.warn(text)
            self.tracker.alert("straggler", text, "WARN")
        for rank in ended:
            self.console.print(f"rank {rank} on {self.hosts[rank]} keeps up again")
        seconds = [sum(each.values()) for each in times]
        slowest = seconds.index(max(seconds))
        return {
            "step_seconds.least": min(seconds),
            "step_seconds.most": seconds[slowest],
            "step_seconds.slowest_rank": slowest,
            "step_seconds.ratio": ratios_to_others(seconds)[slowest],
            "step_seconds.stragglers": len(self.straggler_detector.behind),
        }

    def write_status(self, row: Row, times: list[Times], seconds_left: float) -> None:
        """Write status.json, at most once a second."""
        if self.status_file is None:
            return
        own: list[Times] = times or [{} for _ in self.hosts]
        behind = self.straggler_detector.behind.values()
        self.status_file.update(
            {
                "epoch": self.state.progress.epoch + 1,
                "images_per_second": row["images_per_second"],
                "step_seconds": row["step_seconds"],
                "seconds_left": seconds_left,
                "ranks": [{"host": host, **each} for host, each in zip(self.hosts, own, strict=True)],
                "stragglers": [asdict(each) | {"text": each.describe()} for each in behind],
            }
        )

    def log_epoch(self, lr: float, split: str, held_out: Metrics | None) -> None:
        """Log the training metrics of the epoch; the console shows them beside those of the evaluation at its end.

        Args:
            lr: learning rate of the last update.
            split: name of the held-out set.
            held_out: metrics on the held-out set; None if the epoch ended without an evaluation.
        """
        progress, epoch = self.state.progress, self.state.reduce_counts(self.state.epoch_counts)
        self.write(epoch.row("epoch.train") | epoch.details("epoch.train") | {"epoch.seconds": progress.seconds})
        if held_out is None:
            quality = f"train loss {format_loss(epoch.loss)}, accuracy {format_percent(epoch.accuracy)}"
            where = f"epoch {progress.epoch + 1}/{self.state.config.train.epochs}"
            self.console.print(f"{where}: {quality}; {split} at the end only (train.protocol=honest)")
        else:
            facts = {"epoch": progress.epoch + 1, "split": split, "lr": lr, "seconds": progress.seconds}
            self.console.epoch(facts | epoch.row("epoch.train") | held_out.row(split))
        self.state.epoch_counts.clear()


class TrainTimer:
    """Measures the time spent in training steps and adds it to `progress.seconds`.

    `step_timer` runs while this timer runs, so that it measures training steps only.
    """

    def __init__(self, progress: TrainProgress, step_timer: StepTimer) -> None:
        self.progress, self.step_timer = progress, step_timer
        self.started = 0.0  # time.perf_counter(); 0 while stopped

    @property
    def seconds(self) -> float:
        """Seconds spent in training steps, those before a resume included."""
        return self.progress.seconds + (time.perf_counter() - self.started if self.started else 0.0)

    def start(self) -> None:
        """Start the timer."""
        self.started = time.perf_counter()
        self.step_timer.resume()

    def stop(self) -> None:
        """Stop the timer and update `progress.seconds`."""
        self.progress.seconds, self.started = self.seconds, 0.0
        self.step_timer.pause()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude this block from training time."""
        was_running = bool(self.started)
        self.stop()
        yield
        if was_running:
            self.start()
