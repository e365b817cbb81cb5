"""A tracker that records with one of accelerate's, for `tracking.also`.

A run that is resumed continues where it was. metrics.jsonl decides: rows of earlier segments that the tool lacks,
because the run was killed before they were written or the tool was not asked for then, are recorded now; and rows that
it has already from steps after the checkpoint, which the run computes again, are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mnist_dist.config.schema import Config, flat
from mnist_dist.tracking.backend import Backend, RunInfo, StartTracker
from mnist_dist.tracking.media import Media, wandb_key
from mnist_dist.tracking.mlflow_backend import MLflowBackend
from mnist_dist.tracking.queued_tracker import QueuedTracker, Row, default_environment
from mnist_dist.tracking.run_record import read_rows
from mnist_dist.tracking.tensorboard_backend import TensorBoardBackend
from mnist_dist.tracking.trackio_backend import TrackioBackend
from mnist_dist.tracking.wandb_settings import resolve_labels

BACKENDS: dict[str, Callable[[RunInfo], Backend]] = {
    "tensorboard": TensorBoardBackend,
    "trackio": TrackioBackend,
    "mlflow": MLflowBackend,
}


class AccelerateTracker(QueuedTracker):
    """Arguments as in `open_tracker`; name: one of `BACKENDS`."""

    def __init__(
        self,
        name: str,
        config: Config,
        folder: Path,
        run_id: str,
        resumed: bool,
        warn: Callable[[str], None],
        facts: Row,
        start: StartTracker,
    ) -> None:
        super().__init__(name, config.tracking.timeout, warn)
        self._config, self._start = config, start
        self._values = flat(config) | {f"facts.{key}": value for key, value in facts.items()}
        self._earlier_rows = read_rows(folder) if resumed else []
        last_step = self._earlier_rows[-1]["step"] if self._earlier_rows else -1
        labels = resolve_labels(config.tracking)
        run_name = labels.name or folder.resolve().name
        run = RunInfo(folder, run_id, labels.project, run_name, last_step, config.tracking.timeout, warn)
        self._backend = BACKENDS[name](run)
        self._recorded: dict[str, set[int]] = {}  # by earlier segments; read when a key first comes
        self.start_thread()

    def log(self, row: Row) -> None:
        """Log a row of metrics.jsonl. Returns at once."""
        row = dict(row)
        self._step = row["step"]
        self.enqueue(lambda: self._log_row(row))

    def log_media(self, step: int, epoch: int, media: Media) -> None:
        """Log the images of a step. Returns at once."""
        self._step = step
        self.enqueue_media(lambda: self._log_images(step, media))

    def write_logs(self, line: str) -> None:
        """Does nothing: wandb alone takes what the run prints."""

    def alert(self, title: str, text: str, level: str = "WARN") -> None:
        """Does nothing: wandb alone sends alerts."""

    # On the thread

    def record(self) -> None:
        """Open the run, record until `finish` is called, and close it."""
        backend = self._backend
        with default_environment(backend.environment()):
            try:
                if backend.open(self._start):
                    backend.log_config(self._values)
                self.view_hint = backend.view_hint()
                for row in self._earlier_rows:
                    self._log_row(row)
                for call in self.queued_calls():
                    call()
                summary, exit_code = self._result
                if summary:
                    self._log_summary(summary)
            except BaseException:
                with suppress(Exception):
                    backend.finish(1)
                raise
            backend.finish(exit_code)

    def clean_up(self) -> None:
        """See `Backend.clean_up`."""
        self._backend.clean_up()

    def _log_row(self, row: Row) -> None:
        values = numbers(row)
        if values and self._is_new(next(iter(values)), row["step"]):
            self._backend.log({**values, "epoch": row["epoch"]}, row["step"], row["time"])

    def _log_images(self, step: int, media: Media) -> None:
        images = {
            f"{kind}/{wandb_key(name)}": image
            for kind, found in (("maps", media.maps), ("filters", media.filters))
            for name, image in found.items()
        }
        if images and self._is_new(next(iter(images)), step):
            self._backend.log_images(images, step)
        for key, examples in (("mistakes", media.mistakes), ("samples", media.samples)):
            if examples and self._is_new(key, step):
                self._backend.log_examples(key, examples, self._config.data.class_names, step)

    def _log_summary(self, summary: Row) -> None:
        results = {f"summary/{wandb_key(key)}": value for key, value in summary.items()}
        texts = {key: value for key, value in results.items() if isinstance(value, str)}
        self._backend.log_summary(numbers(results), texts, summary["train.steps"], time.time())

    def _is_new(self, key: str, step: int) -> bool:
        """Whether earlier segments did not record this key at this step. The next time it is asked, it is."""
        if key not in self._recorded:
            self._recorded[key] = self._backend.steps(key)
        is_recorded = step in self._recorded[key]
        self._recorded[key].discard(step)
        return not is_recorded


def numbers(row: Row) -> dict[str, float]:
    """The metrics of a row with slashes in their keys: no lists, nothing that is not a number."""
    return {
        wandb_key(key): value
        for key, value in row.items()
        if key not in ("step", "epoch", "time") and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
