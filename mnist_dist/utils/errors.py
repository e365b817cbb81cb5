"""The ways a run ends other than by finishing, and the exit code of each."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_STOPPED = 3


class UserError(Exception):
    """Something the user can mend. The message is one line: what, where, what to do. Exit code 2."""


class TrainingError(Exception):
    """The run cannot go on, although nothing the user typed is wrong. One line; exit code 1.

    Args:
        everywhere: every process raises it alike, so that one of them is enough to report it.
    """

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, SIGUSR1, Ctrl-C) and wrote a checkpoint. Exit code 3."""
