"""A run: its result, and its last part, from the open run directory to summary.json."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mnist_dist.checkpoint.model_files import write_model_files
from mnist_dist.checkpoint.run_dir import RunDir, delete_summary, read_summary, write_config, write_summary
from mnist_dist.checkpoint.run_paths import CHECKPOINTS, METRICS, PROFILE, REPORT, STATUS
from mnist_dist.config.validation import describe_early_stopping, describe_excess
from mnist_dist.console.console import Console
from mnist_dist.console.tee import TeeConsole
from mnist_dist.data.dataset import Splits
from mnist_dist.distributed.accelerate_trackers import start_tracker
from mnist_dist.tracking.metrics_file import MetricsFile
from mnist_dist.tracking.queued_tracker import one_line
from mnist_dist.tracking.status_file import StatusFile
from mnist_dist.tracking.tracker import open_tracker
from mnist_dist.tracking.wandb_auth import WandbKeyCheck, describe_tracking
from mnist_dist.training.early_stopping import how_to_train_longer, summary_keys
from mnist_dist.training.machine_load import share_load
from mnist_dist.training.metric_logger import MetricLogger
from mnist_dist.training.metrics import Metrics
from mnist_dist.training.profiler import measure_peak_flops
from mnist_dist.training.run_report import RunReport, plan_report
from mnist_dist.training.state import TrainingState
from mnist_dist.training.summary import describe_resolved, summarize
from mnist_dist.training.train_step import TrainStep
from mnist_dist.training.trainer import Trainer
from mnist_dist.training.visualizer import Visualizer, wants_media
from mnist_dist.utils.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, Stopped
from mnist_dist.utils.files import read_json_or_empty
from mnist_dist.utils.strict_json import dump_strict
from mnist_dist.utils.versions import versions


@dataclass(frozen=True)
class Run:
    """A finished run. Every rank has the same one.

    >>> from mnist_dist import Config, train
    >>> run = train(Config.from_recipe("debug", {"run.dir": "runs/other", "run.quiet": True}))
    runs/other
    >>> run, run.summary["test.count"]
    (Run(folder=PosixPath('runs/other')), 1000)
    """

    folder: Path
    """The run directory."""
    summary: dict[str, Any] = field(repr=False)
    """The content of its summary.json."""


def train_and_test(
    train_step: TrainStep,
    data: Splits,
    console: Console,
    run_dir: RunDir,
    run_id: str,
    key_check: WandbKeyCheck | None,
    status_file: StatusFile | None = None,
) -> Run:
    """Open metrics.jsonl and the tracker, train, test, write summary.json and the report. Every rank must call it.

    Args:
        train_step: its state is new, or restored from a checkpoint.
        run_id: the run's id in the tracker.
        key_check: the check of the wandb key that is under way, on the main process only.
        status_file: as `open_status_file` gives it.

    Raises:
        Stopped: a rank was asked to stop; a checkpoint is written.
        TrainingError: train.nonfinite ends the run, or a file cannot be written.
    """
    state, config, runtime = train_step.state, train_step.state.config, train_step.state.runtime
    folder, resumed = run_dir.folder, run_dir.same_run
    resumed_from = run_dir.checkpoint.folder if run_dir.checkpoint else None
    tracked = key_check.offline_if_refused(config, console.warn) if key_check else config
    tracking = describe_tracking(tracked) if runtime.is_main else ""  # only rank 0 is sure to have the wandb key
    facts = {"data": data.describe(), "tracking": tracking, "run": str(folder)}
    console.header(runtime.describe() | state.describe() | facts)
    processes = runtime.topology.local_world_size
    excess = describe_excess(config, len(data.train), len(data.test), processes, os.cpu_count() or 1)
    for line in (*excess, *describe_early_stopping(config, len(state.sampler), state.last_step)):
        console.warn(line)
    if resumed_from:
        console.print(f"resuming from {resumed_from}")

    metrics_file: MetricsFile | None = None
    if runtime.is_main:
        delete_summary(folder)
        with suppress(OSError):  # that of an earlier finish, which is not true any more
            (folder / REPORT).unlink(missing_ok=True)
        write_config(folder, config)
        write_model_files(folder, state.code)
        metrics_file = MetricsFile(folder / METRICS, state.progress.step if resumed else -1, console.warn)
    resolved = describe_resolved(state, data) | versions()
    has_media = wants_media(config, tracked, runtime)
    load = share_load(tracked, run_id, runtime, console.warn)
    tracker = open_tracker(
        tracked, folder, run_id, resumed, console.warn, runtime.is_main, resolved, start_tracker, load
    )
    if isinstance(console, TeeConsole):
        console.copy_lines_to(tracker.write_logs)

    code, summary = EXIT_FAILED, dict[str, Any]()
    try:
        peak_flops = measure_peak_flops(runtime) if config.train.profile else 0.0
        trainer = Trainer(
            train_step,
            data,
            console,
            MetricLogger(state, console, tracker, metrics_file, peak_flops, status_file),
            run_id,
            checkpoint_dir=folder / CHECKPOINTS,
            profile_dir=folder / PROFILE,
            visualizer=Visualizer(state, data, tracker) if has_media else None,
            saved_step=state.progress.step if resumed_from else -1,
        )
        trainer.train()
        report = plan_report(state, data)
        test = test_metrics(trainer, report)
        summary = runtime.broadcast(summarize(trainer, test, resumed_from))  # its times are those of rank 0
        code = EXIT_DONE
        tracker.alert("Run finished", f"{folder.name}: test accuracy {test.accuracy:.2%}", "INFO")
    except Stopped as stopped:
        code = EXIT_STOPPED
        tracker.alert("Run stopped", f"{folder.name}: {stopped}")
        raise
    except BaseException as error:
        tracker.alert("Run failed", f"{folder.name}: {one_line(error)}", "ERROR")
        raise
    finally:
        console.close()
        tracker.finish(summary, code)
        if tracker.view_hint:
            console.print(tracker.view_hint)
    if runtime.is_main:
        write_summary(folder, summary)
    console.summary(summary | {"run.dir": str(folder)}, test.confusion, config.data.class_names)
    if report:
        report.write(folder, console)
    return Run(folder, as_in_json(summary))


def test_metrics(trainer: Trainer, report: RunReport | None) -> Metrics:
    """Metrics of a trained model on the test set, which the report gets the predictions on. Every rank must call it."""
    if report:  # if each epoch tested too, the test is done again: the same metrics, now with the predictions
        metrics = trainer.evaluate("test", report.collector)
        report.gather()
        return metrics
    already_tested = trainer.held_out_split == "test" and trainer.held_out_metrics
    return already_tested or trainer.evaluate("test")


def open_status_file(state: TrainingState, folder: Path, console: Console) -> StatusFile:
    """status.json of a run, with what stays the same; on other processes than the main one it writes nothing."""
    runtime = state.runtime
    facts = {
        "world_size": runtime.world_size,
        "machines": runtime.topology.machines,
        "last_step": state.last_step,
        "epochs": state.config.train.epochs,
    }
    path = folder / STATUS if runtime.is_main else None
    return StatusFile(path, facts, lambda: {"step": state.progress.step}, console.warn)


def finished_run(state: TrainingState, run_dir: RunDir, console: Console) -> Run:
    """The run that the run directory holds, which has nothing left to train. Every rank must call it.

    Args:
        state: restored from its last checkpoint.
    """
    folder = run_dir.folder
    console.print(f"{folder} holds this run, finished; {how_to_train_longer(state, folder)}")
    if read_json_or_empty(folder / STATUS).get("state") == "running":  # killed between the summary and this file
        with open_status_file(state, folder, console):
            pass
    summary = state.runtime.run_on_main(lambda: read_summary(folder) or {})
    return Run(folder, summary | summary_keys(state))  # train.target_accuracy may be another one


def as_in_json(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary as summary.json holds it: null for nan and infinity, and lists only."""
    return json.loads(dump_strict(summary))
