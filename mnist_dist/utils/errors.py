"""Exit codes, and the exceptions that lead to them."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_STOPPED = 3


class UserError(Exception):
    """Something the user can correct. The message is one line: what, where, what to do. Exit code 2.

    >>> from mnist_dist import Config, UserError
    >>> try:
    ...     Config.from_recipe("debug", {"optim.lr": -1})
    ... except UserError as error:
    ...     print(error)
    optim.lr=-1 (argument): must be at least 0
    """


class TrainingError(Exception):
    """The run cannot continue, although nothing that the user typed is wrong. The message is one line. Exit code 1.

    Args:
        everywhere: every rank raises the same error, so rank 0 alone reports it.
    """

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class Stopped(Exception):
    """The run was asked to stop (a signal of `utils.signals`) and wrote a checkpoint. Exit code 3."""
