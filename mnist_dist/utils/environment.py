"""What a run sets for the whole process, and takes back at its end: environment variables, hooks, filters."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import sys
import warnings
from collections.abc import Iterator

SET_BY_A_RUN = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUBLAS_WORKSPACE_CONFIG", "KINETO_LOG_LEVEL", "GLOO_SOCKET_IFNAME"),
    "WANDB_ERROR_REPORTING",
)
"""Not those that libraries set for themselves, which they may read again."""
TERMINAL_SIZE = ("COLUMNS", "LINES")
"""0 means that the terminal does not know its size, but rich would show nothing."""


@contextlib.contextmanager
def restored_environment() -> Iterator[None]:
    """Restore the variables of SET_BY_A_RUN at the end, for the program that embeds this one.

    Within the block, a size of the terminal of 0 is not set.
    """
    before = {name: os.environ.get(name) for name in SET_BY_A_RUN + TERMINAL_SIZE}
    for name in TERMINAL_SIZE:
        if before[name] == "0":
            del os.environ[name]
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def restored_process() -> Iterator[None]:
    """As `restored_environment`, for the program that embeds this one; also what the libraries of a run leave changed.

    That is sys.excepthook, sys.exit and the start method of multiprocessing (wandb), filters of warnings (accelerate),
    and the state of Python's random numbers (rich).
    """
    hooks, numbers = (sys.excepthook, sys.exit), random.getstate()
    start_method = multiprocessing.get_start_method(allow_none=True)
    try:
        with restored_environment(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "IProgress not found")  # tqdm in a notebook; accelerate imports it
            yield
    finally:
        sys.excepthook, sys.exit = hooks
        random.setstate(numbers)
        multiprocessing.set_start_method(start_method, force=True)
