"""TensorBoard: event files in `tensorboard/` of the run's folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mnist_dist.tracking.backend import Backend, RunInfo, StartTracker, describe_examples
from mnist_dist.tracking.media import Example

if TYPE_CHECKING:
    import numpy as np


class TensorBoardBackend(Backend):
    """Writes event files. TensorBoard hides what a killed segment of the run had written after its checkpoint."""

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self.folder = run.folder / "tensorboard"
        self.recorded: dict[str, set[int]] = {}

    def open(self, start: StartTracker) -> bool:
        """Open a new event file. With others of this run, its first event hides later steps than `last_step`."""
        exists = any(self.folder.glob("events.out.tfevents.*"))
        is_new = not exists or self.run.last_step < 0
        if not is_new:
            self.recorded = self.read_steps()
        options = {"purge_step": self.run.last_step + 1} if exists else {}
        self.tracker = start("tensorboard", self.folder.name, str(self.run.folder), **options)
        return is_new

    def read_steps(self) -> dict[str, set[int]]:
        """The steps of each scalar, up to `last_step`."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(self.folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
        events.Reload()
        last = self.run.last_step
        return {key: {e.step for e in events.Scalars(key) if e.step <= last} for key in events.Tags()["scalars"]}

    def view_hint(self) -> str:
        """The command."""
        return f"tensorboard: view it with `tensorboard --logdir {shlex.quote(str(self.run.folder))}`"

    def steps(self, key: str) -> set[int]:
        """The steps of earlier segments."""
        return self.recorded.get(key, set())

    def log(self, values: Mapping[str, float], step: int, time: float) -> None:
        """Record scalars."""
        self.tracker.log(dict(values), step=step, walltime=time)

    def log_images(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Record each as an image."""
        batches = {key: image[None, :, :, None] for key, image in images.items()}
        self.tracker.log_images(batches, step=step, dataformats="NHWC")
        self.tracker.tracker.flush()

    def log_examples(self, key: str, examples: Sequence[Example], classes: Sequence[str], step: int) -> None:
        """Record a grid of the images, and a table as text."""
        import numpy as np

        images = np.stack([example.image for example in examples])[..., None]
        self.tracker.log_images({key: images}, step=step, dataformats="NHWC")
        rows = describe_examples(examples, classes)
        lines = [tuple(rows[0]), ["---"] * len(rows[0]), *(tuple(row.values()) for row in rows)]
        self.tracker.log({f"{key}/table": "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)}, step=step)
