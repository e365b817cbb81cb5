"""How every entry ends: one line for what went wrong, and the exit code that says which kind it was."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from mnist_dist.utils.errors import (
    EXIT_FAILED,
    EXIT_STOPPED,
    EXIT_USER,
    Stopped,
    TrainingError,
    UserError,
)

_skip_exit_hooks = threading.Event()


def run_to_exit_code(action: Callable[[], int]) -> int:
    """Do what an entry does, and report an expected failure in one line on standard error.

    An unexpected exception is shown with its traceback and gives exit code 1.
    """
    try:
        return action()
    except UserError as error:
        if env_rank("LOCAL_RANK") == "0":
            return report(error, EXIT_USER)
        # Every process of this machine fails alike and its first one reports it. The launcher ends all the others as
        # soon as one has ended: let that one be the one that reports.
        time.sleep(2)
        return EXIT_USER
    except TrainingError as error:
        if not error.everywhere:
            return report(f"rank {env_rank()}: {error}" if "WORLD_SIZE" in os.environ else error, EXIT_FAILED)
        return report(error, EXIT_FAILED) if env_rank() == "0" else EXIT_FAILED
    except Stopped as error:
        return report(error, EXIT_STOPPED, "stopped") if env_rank() == "0" else EXIT_STOPPED
    except KeyboardInterrupt:
        return report("interrupted", EXIT_FAILED) if env_rank() == "0" else EXIT_FAILED
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception:
        traceback.print_exc()
        return EXIT_FAILED


def env_rank(name: str = "RANK") -> str:
    """This process's rank. Read when it is needed: of some launchers it is known only once the entry has begun."""
    return os.environ.get(name, "0")


def skip_exit_hooks() -> None:
    """Make `leave_after` end the process without what Python and C++ libraries do at exit."""
    _skip_exit_hooks.set()


def exit_with(program: Callable[[], int]) -> NoReturn:
    """Run a program and end the process with the exit code it gives."""
    code = program()
    if _skip_exit_hooks.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def report(message: object, code: int, kind: str = "error") -> int:
    """Write one line to standard error; gives back the exit code."""
    sys.stdout.flush()
    print(f"mnist_dist: {kind}: {' '.join(str(message).splitlines())}", file=sys.stderr, flush=True)
    return code
