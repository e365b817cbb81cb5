"""Write checkpoints in a background thread while training goes on, at most one at a time.

`torch.distributed.checkpoint.async_save` is not used: see `checkpoint.manager`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

from mnist_dist.checkpoint.manager import CheckpointData, prune_checkpoints, save_checkpoint
from mnist_dist.utils.errors import TrainingError

START_SECONDS = 1.0
"""For a thread to be running whose start was interrupted."""


class CheckpointWriter:
    """Writes checkpoints in the order of `submit`, and prunes after each. For the main process only.

    The thread is a daemon: if the process ends during a write, that checkpoint does not exist and all earlier ones do.

    Args:
        root: the folder that holds the checkpoints.
        keep: number of newest checkpoints to keep, in addition to the best one.
        warn: takes one line for each checkpoint that could not be written; called from the thread.
    """

    def __init__(self, root: Path, keep: int, warn: Callable[[str], None]) -> None:
        self.root, self.keep, self.warn = root, keep, warn
        self.thread: Thread | None = None
        self.failure: Exception | None = None  # of the last checkpoint submitted

    def submit(self, step: int, data: CheckpointData, best_step: int | None) -> None:
        """Wait for the write in flight, then start to write this checkpoint.

        Args:
            data: private copies, as `CheckpointData.to_host` makes them: the thread reads them after this returns.
            best_step: step of the checkpoint to keep at any age; None without one.
        """
        self.wait()
        self.failure = None
        self.thread = Thread(target=self.write, args=(step, data, best_step), name="checkpoint", daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Wait for the write in flight, if there is one. A failure of it was a warning."""
        if self.thread is not None:
            join_once_started(self.thread)
            self.thread = None

    def finish(self) -> None:
        """Wait for the write in flight; the last checkpoint must have been written, or the run must not end well.

        Raises:
            TrainingError: the last checkpoint cannot be written.
        """
        self.wait()
        if isinstance(self.failure, TrainingError):
            raise TrainingError(str(self.failure)) from self.failure
        if self.failure is not None:
            raise self.failure

    def write(self, step: int, data: CheckpointData, best_step: int | None) -> None:
        """Save and prune, in the thread."""
        try:
            save_checkpoint(self.root, step, data)
            prune_checkpoints(self.root, self.keep, best_step, step)
        except Exception as error:
            self.failure = error
            self.warn(f"{error}; training goes on without it")


def join_once_started(thread: Thread) -> None:
    """Wait for a thread to end, also if a second Ctrl-C came while `thread.start()` waited for its start."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return thread.join()
        except RuntimeError:  # not started
            if time.monotonic() > deadline:
                return None
            time.sleep(0.001)
