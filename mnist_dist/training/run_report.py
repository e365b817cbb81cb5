"""report.html at the end of a run, from the predictions of its last test evaluation."""

from __future__ import annotations

import copy
from pathlib import Path

from mnist_dist.checkpoint.run_paths import REPORT
from mnist_dist.console.console import Console
from mnist_dist.data.dataset import Splits
from mnist_dist.tracking.queued_tracker import one_line
from mnist_dist.tracking.report import can_render, write_report
from mnist_dist.tracking.run_record import read_record
from mnist_dist.training.examples import ExampleCollector
from mnist_dist.training.model_view import MISTAKES, view_predictions
from mnist_dist.training.state import TrainingState

AUTO_IMAGES = 100_000
"""Images that a run has trained on, each epoch's counted anew, from which tracking.report=auto means true. A number of
images, not a time: so it depends on the settings alone, and not on how fast the machine is."""


class RunReport:
    """Collects what the report shows of the model on all ranks, and writes the report on the main one.

    Nothing here changes a weight, a metric or a random state.

    Args:
        state: after training.
        data: the test set is taken from it.
    """

    def __init__(self, state: TrainingState, data: Splits) -> None:
        self.state, self.pictures = state, data.test.images
        self.collector = ExampleCollector(MISTAKES, len(state.config.data.class_names))
        """To pass to the evaluation on the test set."""

    def gather(self) -> None:
        """Bring the predictions, and with FSDP2 the model, to the main process. Every rank must call it."""
        runtime = self.state.runtime
        self.rows = runtime.all_gather(self.collector.rows(runtime.device))
        self.model = self.state.eval_model

    def write(self, folder: Path, console: Console) -> None:
        """Write report.html on the main process, after summary.json, and print its path. The other ranks do not wait.

        The run is done: whatever goes wrong here, a second Ctrl-C included, becomes one warning.
        """
        if not self.state.runtime.is_main:
            return
        path = folder / REPORT
        try:
            # A copy on the CPU, as the model is described there.
            view = view_predictions(copy.deepcopy(self.model).cpu(), self.rows, self.pictures, self.state.config)
            write_report(path, [read_record(folder)], [view])
        except (Exception, KeyboardInterrupt) as error:
            why = one_line(error) if isinstance(error, Exception) else "interrupted"
            console.warn(f"{path} was not written ({why}); `mnist-dist report {folder}` writes it")
        else:
            console.print(f"report: {path}")


def plan_report(state: TrainingState, data: Splits) -> RunReport | None:
    """The report of a run that has trained, as tracking.report says; None for no report. Every rank must call it."""
    setting, runtime = state.config.tracking.report, state.runtime
    if setting == "false" or (setting == "auto" and state.progress.images < AUTO_IMAGES):
        return None
    # Only rank 0 needs matplotlib: the others may be on machines without it.
    return RunReport(state, data) if runtime.broadcast(runtime.is_main and can_render()) else None
