"""What a tool of `tracking.also` has to do, and which tools there are.

accelerate's trackers do most of it. Each tool has a file with what they lack: where it records, how it continues a run,
and images.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_dist.config.sections import TrackingConfig
from mnist_dist.tracking.media import Example
from mnist_dist.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np

StartTracker = Callable[..., Any]
"""`distributed.accelerate_trackers.start_tracker`."""

PACKAGES: dict[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
"""Packages that each tool of `tracking.also` needs; mlflow the last two for its file in the run's folder."""


@dataclass(frozen=True)
class RunInfo:
    """What a backend is told about the run."""

    folder: Path
    """The run's."""
    run_id: str
    """The same for all segments of a run that is stopped and resumed."""
    project: str
    name: str
    """The run's name, not unique."""
    last_step: int
    """The last step that metrics.jsonl has from earlier segments of this run; -1 if there are none."""
    timeout: float
    """tracking.timeout, in seconds."""
    warn: Callable[[str], None]
    """Takes one line."""


class Backend:
    """One of accelerate's trackers, for one run. All methods are called on one thread, and may raise anything.

    Keys have slashes, as `train/loss`.
    """

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.tracker: Any = None  # accelerate's

    def environment(self) -> dict[str, str]:
        """Environment variables to set, where the user did not set them, from before the import to the end."""
        return {}

    def open(self, start: StartTracker) -> bool:
        """Import the package, and create the run, or continue it. Returns whether it needs the configuration."""
        raise NotImplementedError

    def view_hint(self) -> str:
        """How to view what is recorded, one line."""
        raise NotImplementedError

    def steps(self, key: str) -> set[int]:
        """The steps at which earlier segments of the run recorded this key."""
        raise NotImplementedError

    def log_config(self, values: Mapping[str, Any]) -> None:
        """Record the configuration: plain values and lists with dotted keys."""
        self.tracker.store_init_configuration({key: plain(value) for key, value in values.items()})

    def log(self, values: Mapping[str, float], step: int, time: float) -> None:
        """Record numbers. time: in seconds since 1970."""
        raise NotImplementedError

    def log_images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Record images: uint8 (H, W)."""
        raise NotImplementedError

    def log_examples(self, key: str, examples: Sequence[Example], classes: Sequence[str], step: int) -> None:
        """Record images with their labels and predictions."""
        raise NotImplementedError

    def log_summary(self, numbers: Mapping[str, float], texts: Mapping[str, str], step: int, time: float) -> None:
        """Record the results of a finished run."""
        self.log(numbers, step, time)
        self.tracker.log(dict(texts), step=step)

    def finish(self, exit_code: int) -> None:
        """Write everything and close the run, if it was opened."""
        if self.tracker is not None:
            self.tracker.finish()

    def clean_up(self) -> None:
        """Undo what `open` changed in this process, however the run ended."""


def plain(value: Any) -> Any:
    """The value as trackers take it: a list or None becomes text."""
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def describe_examples(examples: Sequence[Example], classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each example, without its image."""
    return [
        {
            "index": each.index,
            "label": classes[each.label],
            "predicted": classes[each.predicted],
            "probability": round(each.probabilities[each.predicted], 4),
            "loss": round(each.loss, 4),
        }
        for each in examples
    ]


def check_packages(tracking: TrackingConfig) -> None:
    """Check that the packages of tracking.also and tracking.report are installed, without importing them.

    Raises:
        UserError: names one that is not, and how to install it.
    """
    for name in tracking.also:
        for package in PACKAGES[name]:
            is_own_file = package == name or not os.environ.get("MLFLOW_TRACKING_URI")
            if is_own_file and not is_installed(package):
                needed = package if package == name else f"{package}, which {name} needs for its file in run.dir,"
                raise UserError(
                    f"tracking.also={name}: {needed} is not installed; run: pip install 'mnist_dist[{name}]'"
                )
    if tracking.report == "true" and not is_installed("matplotlib"):
        raise UserError("tracking.report=true: matplotlib is not installed; run: pip install 'mnist_dist[report]'")


def is_installed(package: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a module without a specification, or None in sys.modules
        return False
