"""MLflow: a SQLite file and images in `mlflow/` of the run's folder, or the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mnist_dist.tracking.backend import Backend, RunInfo, StartTracker, describe_examples
from mnist_dist.tracking.media import Example
from mnist_dist.utils.errors import EXIT_DONE, EXIT_STOPPED

if TYPE_CHECKING:
    import numpy as np

RUN_TAG = "mnist_dist.run_id"
STATUS = {EXIT_DONE: "FINISHED", EXIT_STOPPED: "KILLED"}


class MLflowBackend(Backend):
    """Records params, metrics and artifacts. A tag with the run's id finds the MLflow run when the run is resumed."""

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self.folder = run.folder.absolute() / "mlflow"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI", "")  # set by the user
        self.mlflow: Any = None
        self.is_new = True
        self.level = logging.getLogger("mlflow").level

    def environment(self) -> dict[str, str]:
        """A file as store, no telemetry, and little patience with a server."""
        return {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(int(self.run.timeout / 4), 1)),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
            "GIT_PYTHON_REFRESH": "quiet",
        }

    def open(self, start: StartTracker) -> bool:
        """Start the MLflow run, or the one with this run's tag again."""
        import mlflow

        self.mlflow = mlflow
        logging.getLogger("mlflow").setLevel(logging.ERROR)  # it tells of each table that it creates
        artifacts = None
        if not self.uri:
            (self.folder / "artifacts").mkdir(parents=True, exist_ok=True)
            artifacts = (self.folder / "artifacts").as_uri()
        found = mlflow.search_runs(
            experiment_names=[os.environ.get("MLFLOW_EXPERIMENT_NAME", self.run.project)],
            filter_string=f"tags.`{RUN_TAG}` = '{self.run.run_id}'",
            output_format="list",
        )
        self.is_new = not found
        self.tracker = start(
            "mlflow",
            self.run.project,
            artifacts,
            run_id=None if self.is_new else found[0].info.run_id,
            run_name=self.run.name,
            tags={RUN_TAG: self.run.run_id},
        )
        return self.is_new

    def view_hint(self) -> str:
        """The command, or the server."""
        if self.uri:
            return f"mlflow: {self.uri}"
        database = f"sqlite:///{self.folder / 'mlflow.db'}"
        return f"mlflow: view it with `mlflow ui --backend-store-uri {shlex.quote(database)}`"

    def steps(self, key: str) -> set[int]:
        """The steps of this metric so far."""
        if self.is_new:
            return set()
        history = self.mlflow.MlflowClient().get_metric_history(self.tracker.tracker.info.run_id, key)
        return {metric.step for metric in history}

    def log(self, values: Mapping[str, float], step: int, time: float) -> None:
        """Record metrics."""
        self.tracker.log(dict(values), step=step, timestamp=int(time * 1000))

    def log_images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Record each as a PNG file."""
        for key, image in images.items():
            self.mlflow.log_image(image, f"{key}/step-{step:08}.png")

    def log_examples(self, key: str, examples: Sequence[Example], classes: Sequence[str], step: int) -> None:
        """Record the images side by side as a PNG file, and a table as JSON."""
        import numpy as np

        self.log_images({key: np.hstack([example.image for example in examples])}, step)
        self.mlflow.log_dict({key: describe_examples(examples, classes)}, f"{key}/step-{step:08}.json")

    def log_summary(self, numbers: Mapping[str, float], texts: Mapping[str, str], step: int, time: float) -> None:
        """Record metrics, and tags for texts."""
        self.log(numbers, step, time)
        self.mlflow.set_tags(texts)

    def finish(self, exit_code: int) -> None:
        """End the run with its status."""
        if self.tracker is not None:
            self.mlflow.end_run(STATUS.get(exit_code, "FAILED"))

    def clean_up(self) -> None:
        """Let MLflow log again as before."""
        logging.getLogger("mlflow").setLevel(self.level)
