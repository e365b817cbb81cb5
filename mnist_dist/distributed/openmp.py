"""End OpenMP's threads before a fork: else a notebook that has computed cannot launch processes on several threads.

GNU OpenMP's threads do not survive a fork, but its pool in the child has them still: the child's first kernel on
several threads would wait for them for ever. The next kernel of the parent starts new ones. Imports no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import sys

PAUSE_SOFT = 1  # omp.h: omp_pause_soft


@functools.cache
def release_threads_before_forks() -> None:
    """From now on, end this process's OpenMP threads before it forks. A second call does nothing.

    Not in a process that was itself forked by multiprocessing: its pool may be a copy without threads, and to end that
    would wait for them.
    """
    if multiprocessing.parent_process() is None and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=functools.partial(release_threads, os.getpid()))


def release_threads(pid: int) -> None:
    """End the calling thread's OpenMP threads, if torch is loaded and this is the process `pid`."""
    if os.getpid() == pid and "torch" in sys.modules:
        with contextlib.suppress(AttributeError, OSError):  # another OpenMP library, or an older one
            ctypes.CDLL(None).omp_pause_resource_all(PAUSE_SOFT)
