"""Writes checkpoints while training goes on: one at a time, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Thread

from mnist_dist.checkpoint.manager import CheckpointData, prune_checkpoints, save_checkpoint
from mnist_dist.utils.errors import TrainingError


class CheckpointWriter:
    """Writes what it is given, in order, and deletes what is not to be kept. For the main process only.

    The thread dies with the process: a checkpoint that it was writing then does not exist, all earlier ones do.

    Args:
        root: the folder the checkpoints go to.
        keep: newest checkpoints kept, beside the best one.
        warn: takes one line for each checkpoint that could not be written; called from the thread.
    """

    def __init__(self, root: Path, keep: int, warn: Callable[[str], None]) -> None:
        self.root, self.keep, self.warn = root, keep, warn
        self.thread: Thread | None = None
        self.failure: Exception | None = None  # of the last one submitted

    def submit(self, step: int, saved: CheckpointData, best_step: int | None) -> None:
        """Start to write a checkpoint, once the one before is written.

        Args:
            saved: private copies, as `CheckpointData.to_host` gives them: they are read after this returns.
            best_step: the checkpoint to keep, however old.
        """
        self.wait()
        self.failure = None
        self.thread = Thread(target=self.write, args=(step, saved, best_step), name="checkpoint", daemon=True)
        self.thread.start()

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            TrainingError: the last one could not be, so that the run's end or stop must not pretend it was.
        """
        self.wait()
        if isinstance(self.failure, TrainingError):
            raise TrainingError(str(self.failure)) from self.failure
        if self.failure is not None:
            raise self.failure

    def wait(self) -> None:
        """Wait for the write in flight, if there is one."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def write(self, step: int, saved: CheckpointData, best_step: int | None) -> None:
        """The thread's work."""
        try:
            save_checkpoint(self.root, step, saved)
            prune_checkpoints(self.root, self.keep, best_step, step)
        except Exception as error:
            self.failure = error
            self.warn(f"{error}; training goes on without it")
