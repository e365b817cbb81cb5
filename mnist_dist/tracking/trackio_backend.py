"""trackio: a SQLite file and images in `trackio/` of the run's folder, or where TRACKIO_DIR says.

trackio reads TRACKIO_DIR on import, prints, and asks Hugging Face for the user's name. So it is imported for this run
alone, beside one that the program may have imported.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mnist_dist.tracking.backend import Backend, RunInfo, StartTracker, describe_examples, plain
from mnist_dist.tracking.media import Example

if TYPE_CHECKING:
    import numpy as np

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Variables by which the user sends runs elsewhere."""


class TrackioBackend(Backend):
    """Records metrics, images and tables. A run is found again by its name, which ends with the run's id."""

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self.folder = Path(os.environ.get("TRACKIO_DIR") or run.folder.absolute() / "trackio")
        self.is_remote = any(os.environ.get(name) for name in REMOTE)
        self.name = f"{run.name}-{run.run_id}"
        self.trackio: Any = None
        self.imported: dict[str, ModuleType] = {}  # by others
        self.logs: list[Mapping[str, Any]] = []

    def environment(self) -> dict[str, str]:
        """The folder."""
        return {"TRACKIO_DIR": str(self.folder)}

    def open(self, start: StartTracker) -> bool:
        """Create the run, or continue the one with this name."""
        self.imported = take_modules()
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        self.trackio = trackio
        changes: dict[str, Any] = {"_emit_nonfatal_warning": self.warn}
        if not self.is_remote:
            changes["_get_default_namespace"] = lambda: None
        for module in own_modules().values():
            vars(module).update({name: value for name, value in changes.items() if hasattr(module, name)})
            vars(module)["print"] = lambda *_, **__: None
        self.logs = SQLiteStorage.get_logs(self.run.project, self.name)
        self.tracker = start(
            "trackio",
            self.run.project,
            name=self.name,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return True  # it writes the configuration of a continued run anew

    def warn(self, message: str, *_: Any, **__: Any) -> None:
        """trackio's warnings; it raises nothing once a run is open."""
        self.run.warn(f"trackio: {message}")

    def view_hint(self) -> str:
        """The command, or the server."""
        if self.is_remote:
            return f"trackio: {next(filter(None, map(os.environ.get, REMOTE)))}"
        folder, project = shlex.quote(str(self.folder)), shlex.quote(self.run.project)
        return f"trackio: view it with `TRACKIO_DIR={folder} trackio show --project {project}`"

    def steps(self, key: str) -> set[int]:
        """The steps of this metric before."""
        return {row["step"] for row in self.logs if key in row}

    def log_config(self, values: Mapping[str, Any]) -> None:
        """Given to the run itself: accelerate's tracker would add an option of wandb's to it."""
        self.tracker.tracker.config.update({key: plain(value) for key, value in values.items()})

    def log(self, values: Mapping[str, float], step: int, time: float) -> None:
        """Record metrics."""
        self.tracker.log(dict(values), step=step)

    def log_images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Record each as an image."""
        self.tracker.log({key: self.trackio.Image(image) for key, image in images.items()}, step=step)

    def log_examples(self, key: str, examples: Sequence[Example], classes: Sequence[str], step: int) -> None:
        """Record a table with the images."""
        rows = describe_examples(examples, classes)
        data = [[*row.values(), self.trackio.Image(each.image)] for row, each in zip(rows, examples, strict=True)]
        self.tracker.log({key: self.trackio.Table(columns=[*rows[0], "image"], data=data)}, step=step)

    def clean_up(self) -> None:
        """Give the program back what it had imported."""
        take_modules()
        sys.modules.update(self.imported)


def own_modules() -> dict[str, ModuleType]:
    """trackio's modules that are imported."""
    modules = sys.modules.copy()  # in one step: other threads import, and a list of the items can be interrupted
    return {name: module for name, module in modules.items() if name.partition(".")[0] == "trackio"}


def take_modules() -> dict[str, ModuleType]:
    """Remove trackio's modules, so that the next import reads its environment. Returns them."""
    taken = own_modules()
    for name in taken:
        del sys.modules[name]
    return taken
