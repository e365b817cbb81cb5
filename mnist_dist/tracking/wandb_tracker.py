"""The wandb tracker. wandb is imported and called on the thread of `queued_tracker` only.

accelerate's wandb tracker has no offline fallback, resume, media or time limit, so wandb's own API is called.

A run is one wandb run over all its stops and resumes; the checkpoint keeps its id. Online, wandb continues the run.
Offline, each segment has a folder of its own, and `wandb beta sync --id` uploads them as one run.

Each row and each step's media is an entry of its own in wandb's history, with `global_step` as the x-axis of all
charts. Steps that are repeated after a rollback or a crash are logged again: wandb draws both entries, of which the
later is right, and metrics.jsonl has only that one. The summary is computed from metrics.jsonl at the end, so that it
covers all segments and no undone step.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mnist_dist
from mnist_dist.config.schema import Config
from mnist_dist.config.sections import TrackingConfig
from mnist_dist.tracking.media import Media, wandb_key
from mnist_dist.tracking.queued_tracker import one_line
from mnist_dist.tracking.run_record import Row, read_rows
from mnist_dist.tracking.wandb_artifacts import model_artifacts
from mnist_dist.tracking.wandb_media import media_values, row_values
from mnist_dist.tracking.wandb_service import create_temporary_folders, force_teardown, upload_failed
from mnist_dist.tracking.wandb_settings import resolve_labels, wandb_environment
from mnist_dist.tracking.wandb_thread import SYSTEM_SETTINGS, SharedLoad, WandbThread, shared_settings

# Metrics of which wandb's summary has the best value beside the last. None of the test set: nothing is chosen on it.
BEST = {
    **dict.fromkeys(("val.accuracy", "val.top2", "epoch.train.accuracy"), max),
    **dict.fromkeys(("val.loss", "epoch.train.loss"), min),
}
SOURCE_DIR = Path(mnist_dist.__file__).parent


class WandbTracker(WandbThread):
    """A tracker that logs to wandb. Arguments as in `open_tracker`; mode: `online` or `offline`."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        run_id: str,
        resumed: bool,
        mode: str,
        warn: Callable[[str], None],
        facts: Row,
        load: SharedLoad | None = None,
    ) -> None:
        super().__init__("wandb", config.tracking.timeout, warn)
        self._config, self._folder, self._run_id, self._resumed = config, folder, run_id, resumed
        self._mode, self._facts, self._load = mode, facts, load
        self._labels = resolve_labels(config.tracking)
        self._dir = Path(self._labels.dir or folder)  # where wandb creates its folder
        self._sync_dir: Path | None = None  # wandb's folder of this segment
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no crash reports over the network
        self.start_thread()

    def log(self, row: Row) -> None:
        """Log a row of metrics.jsonl. Returns at once."""
        row, config = dict(row), self._config
        self._step = row["step"]
        classes = config.data.class_names if config.tracking.has_media(row["epoch"], config.train.epochs) else ()
        self.enqueue(lambda wandb, run: log(run, row["step"], row["time"], row_values(wandb, row, classes)))

    def log_media(self, step: int, epoch: int, media: Media) -> None:
        """Log the media of a step. Returns at once."""
        now, classes = time.time(), self._config.data.class_names

        def log_values(wandb: Any, run: Any) -> None:
            log(run, step, now, {"epoch": epoch, **media_values(wandb, step, epoch, media, classes)})

        self._step = step
        self.enqueue_media(log_values)

    def write_logs(self, line: str) -> None:
        """Log a line that the run prints. Returns at once."""
        self.enqueue(lambda wandb, run: run.write_logs(line))

    def alert(self, title: str, text: str, level: str = "WARN") -> None:
        """Send an alert, if tracking.alerts is set. Level: INFO, WARN or ERROR. Returns at once."""
        if self._config.tracking.alerts:
            self.enqueue(lambda wandb, run: run.alert(title=title, text=text, level=level))

    def abandon(self) -> None:
        """End wandb's service without waiting for it."""
        super().abandon()
        if self.timed_out:
            self.view_hint = self._describe_files()

    # On the thread

    def record(self) -> None:
        """Import wandb, log until `finish` is called, and leave no process or exit hook of wandb behind."""
        import wandb

        create_temporary_folders(wandb)
        with wandb_environment(self._dir):
            self._log_run(wandb, self._open_run(wandb))
        wandb.teardown(self._result[1])

    def _open_run(self, wandb: Any) -> Any:
        """The wandb run. If it cannot be online, it is offline, with a warning."""
        config, labels = self._config, self._labels

        def init(mode: str) -> Any:
            is_shared = self._load is not None and mode == "online"
            return self.init(
                wandb,
                settings_for(config.tracking) | (shared_settings(0) if is_shared else {}),
                mode="shared" if is_shared else mode,
                id=self._run_id,
                resume="allow",
                dir=str(self._dir),
                name=(labels.name or self._folder.resolve().name)[:128],
                project=labels.project,
                entity=labels.entity or None,
                group=labels.group or None,
                job_type=labels.job_type or None,
                notes=labels.notes or None,
                tags=list(labels.tags) or None,
                config=config.to_dict() | {"facts": {wandb_key(key): value for key, value in self._facts.items()}},
                allow_val_change=self._resumed,
            )

        try:
            run = init(self._mode)
        except Exception as error:
            if self._mode == "offline":
                raise
            self._warn(f"wandb cannot go online ({one_line(error)}); this run is recorded offline")
            self._mode = "offline"
            force_teardown(wandb)
            run = init("offline")
        self._sync_dir = Path(run.settings.sync_dir)
        if not self._sync_dir.resolve().is_relative_to(self._dir.resolve()):
            self._warn(f"wandb cannot write to {self._dir}; it records in {self._sync_dir}")
        self.view_hint = f"wandb: {run.url}" if self._mode == "online" else self._describe_files()
        return run

    def _describe_files(self) -> str:
        """How to view and upload wandb's files, on one line; empty if there are none."""
        if self._sync_dir is None:
            return ""
        path, folder = shlex.quote(str(self._sync_dir)), shlex.quote(str(self._sync_dir.parent))
        if self._mode == "online":  # without this option wandb sync skips online runs, even if rows are missing
            upload = f"sync --include-online {path}"
        else:
            upload = f"beta sync --id {self._run_id} {folder}" if self._resumed else f"sync {path}"
        return f"wandb, offline: view it with `wandb leet {path}`, upload it with `wandb {upload}`"

    def _log_run(self, wandb: Any, run: Any) -> None:
        """Make the queued calls until `finish` is called, then log the summary and the model."""
        run.define_metric("global_step", hidden=True)
        run.define_metric("epoch", step_metric="global_step", hidden=True)
        run.define_metric("*", step_metric="global_step")
        for key, best in BEST.items():
            run.define_metric(wandb_key(key), step_metric="global_step", summary=f"{best.__name__},last")
        if "code" in self._config.tracking.share:
            run.log_code(str(SOURCE_DIR), name="source-mnist_dist", include_fn=lambda path: path.endswith(".py"))
        for call in self.queued_calls():
            call(wandb, run)
        summary, exit_code = self._result
        rows = read_rows(self._folder)
        run.summary.update(plain_summary(summary) | best_values(rows))
        charts = {key: value for key, value in summary.items() if isinstance(value, list)}
        if charts:
            log(run, summary["train.steps"], time.time(), row_values(wandb, charts, self._config.data.class_names))
        if self._config.tracking.artifacts:
            self._log_models(wandb, run, rows)
        try:
            run.finish(exit_code=exit_code)
            is_complete = self._mode == "offline" or not upload_failed(self._sync_dir)
        except TimeoutError:
            is_complete = False
        if not is_complete and not self.timed_out:
            self.view_hint = self._describe_files()
            self._warn("wandb's server did not receive everything; metrics.jsonl has everything")

    def _log_models(self, wandb: Any, run: Any, rows: list[Row]) -> None:
        """Log the newest and the best checkpoint as artifacts; warn if one cannot be read."""
        try:
            for artifact, aliases in model_artifacts(wandb, self._folder, self._run_id, rows, self._result[0]):
                run.log_artifact(artifact, aliases=aliases)
        except (OSError, ValueError, KeyError) as error:
            self._warn(f"the model could not be logged to wandb ({one_line(error)}); it is in {self._folder}")


def settings_for(tracking: TrackingConfig) -> dict[str, Any]:
    """wandb's settings: timeouts, and what is shared."""
    # Half of the time for init and half for finish leave time to start over offline, and to save what is not uploaded.
    half = tracking.timeout / 2
    timeouts = {"init_timeout": half, "finish_timeout": half, "finish_timeout_raises": True}
    return timeouts | (SYSTEM_SETTINGS if "system" in tracking.share else {})


def log(run: Any, step: int, timestamp: float, values: Mapping[str, Any]) -> None:
    """Log an entry of the history. timestamp: seconds since 1970."""
    run.log({"global_step": step, "_timestamp": timestamp, **values})


def plain_summary(summary: Row) -> dict[str, Any]:
    """The results for wandb's summary, without lists and without the keys of `best_values`."""
    return {wandb_key(key): value for key, value in summary.items() if not isinstance(value, list) and key not in BEST}


def best_values(rows: list[Row]) -> dict[str, dict[str, float]]:
    """The best and the last value of each metric in BEST, for wandb's summary."""
    found = {key: [row[key] for row in rows if row.get(key) is not None] for key in BEST}
    return {
        wandb_key(key): {BEST[key].__name__: BEST[key](values), "last": values[-1]}
        for key, values in found.items()
        if values
    }
