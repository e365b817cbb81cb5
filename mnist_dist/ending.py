"""How every entry ends: one line for what went wrong, and the exit code that says which kind it was."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from mnist_dist.errors import EXIT_FAILED, EXIT_STOPPED, EXIT_USER, Stopped, TrainingError, UserError


def run_to_exit_code(action: Callable[[], int]) -> int:
    """Do what an entry does, and report an expected failure in one line on standard error.

    An unexpected exception keeps its traceback and gives exit code 1.
    """
    rank, local_rank = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK"))
    try:
        return action()
    except UserError as error:
        if local_rank == "0":
            return report(error, EXIT_USER)
        # Every process of this machine fails alike and its first one reports it. The launcher ends all the others as
        # soon as one has ended: let that one be the one that reports.
        time.sleep(2)
        return EXIT_USER
    except TrainingError as error:
        if not error.everywhere:
            return report(f"rank {rank}: {error}" if "WORLD_SIZE" in os.environ else error, EXIT_FAILED)
        return report(error, EXIT_FAILED) if rank == "0" else EXIT_FAILED
    except Stopped as error:
        return report(error, EXIT_STOPPED, "stopped") if rank == "0" else EXIT_STOPPED
    except KeyboardInterrupt:
        return report("interrupted", EXIT_FAILED) if rank == "0" else EXIT_FAILED
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def report(message: object, code: int, kind: str = "error") -> int:
    """Write one line to standard error; gives back the exit code."""
    sys.stdout.flush()
    print(f"mnist_dist: {kind}: {' '.join(str(message).splitlines())}", file=sys.stderr, flush=True)
    return code
