"""Environment variables that a program sets for torch, accelerate and wandb, and takes back at its end."""

from __future__ import annotations

import contextlib
import os
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
