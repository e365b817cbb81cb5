"""Program exit: exceptions become one line on standard error and an exit code; hanging exit hooks can be skipped."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from mnist_dist.utils.environment import restored_process
from mnist_dist.utils.error_file import error_file
from mnist_dist.utils.errors import (
    EXIT_FAILED,
    EXIT_STOPPED,
    EXIT_USER,
    Stopped,
    TrainingError,
    UserError,
)
from mnist_dist.utils.signals import lasting_interrupts, leave_on_interrupt
from mnist_dist.utils.stdio import OutputError, discard_if_failing, guarded_streams, open_standard_descriptors

P = ParamSpec("P")
T = TypeVar("T")

REPORT_SECONDS = 2  # that other processes of a machine stay, so that the launcher sees the reporting one end first
_skip_exit_hooks = threading.Event()
_local_main_reports = threading.Event()


@guarded_streams()
@restored_process()
def run_to_exit_code(action: Callable[[], int]) -> int:
    """Run a program's main function and return its exit code; an exception gives the exit code of its kind.

    Expected errors are reported in one line on standard error, by one rank if all have the same. Any other exception
    is printed with its traceback and gives exit code 1. SystemExit passes through.
    """
    try:
        with error_file(), lasting_interrupts():
            return action()
    except UserError as error:
        if env_rank("LOCAL_RANK") != "0":
            # All processes of this machine have the same error and local rank 0 reports it. A launcher kills the others
            # as soon as one has ended, so the reporting one has to end first. Whoever is alive after that may have no
            # launcher, but a LOCAL_RANK that was left in the shell: then nobody else has reported.
            time.sleep(REPORT_SECONDS)
            if _local_main_reports.is_set():
                return EXIT_USER
        return report(error, EXIT_USER)
    except TrainingError as error:
        if not error.everywhere:
            names_rank = "WORLD_SIZE" not in os.environ or str(error).startswith(f"rank {env_rank()} of ")
            return report(error if names_rank else f"rank {env_rank()}: {error}", EXIT_FAILED)
        return report(error, EXIT_FAILED) if env_rank() == "0" else EXIT_FAILED
    except Stopped as error:
        return report(error, EXIT_STOPPED, "stopped") if env_rank() == "0" else EXIT_STOPPED
    except KeyboardInterrupt:
        # Python would end by the signal, with another exit code, if the interrupt came while it ran code from a text,
        # as of a dataclass.
        skip_exit_hooks()
        return report("interrupted", EXIT_FAILED) if env_rank() == "0" else EXIT_FAILED
    except OutputError as error:
        if isinstance(error.__cause__, BrokenPipeError):  # the reader has what it wanted, as `head` does
            return EXIT_FAILED
        return report(error, EXIT_FAILED)
    except Exception:
        traceback.print_exc()
        return EXIT_FAILED


def library_function(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: run a function in the process of the program that calls it, and leave that as it was.

    An expected error comes without the frames and causes within this package: its message is complete.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with guarded_streams(), restored_process():
                return function(*args, **kwargs)
        except (UserError, TrainingError, Stopped) as error:
            raise error.with_traceback(None) from None

    return call


def env_rank(name: str = "RANK") -> str:
    """This process's rank by an environment variable, `0` if unset.

    It is read at each call, not on import: for launchers other than torchrun, the program sets the variable itself.
    """
    return os.environ.get(name, "0")


def rely_on_local_main() -> None:
    """Leave the report of a UserError to local rank 0: called where a launcher is known to have started it, too."""
    _local_main_reports.set()


def skip_exit_hooks() -> None:
    """Make `exit_with` end the process by os._exit, without the exit handlers of Python and C++ libraries.

    Called where these may hang or abort: docs/decisions/0002.
    """
    _skip_exit_hooks.set()


def exit_with(program: Callable[[], int]) -> NoReturn:
    """Run a program and end the process with the exit code that it returns.

    Once it has returned, Ctrl-C only skips what is left of the exit hooks.
    """
    open_standard_descriptors()
    try:
        code = program()
    except KeyboardInterrupt:  # another one, while the first is reported
        os._exit(EXIT_FAILED)
    leave_on_interrupt(lambda: os._exit(code))
    discard_if_failing(sys.stdout)
    discard_if_failing(sys.stderr)
    if _skip_exit_hooks.is_set():
        os._exit(code)
    sys.exit(code)


def report(message: object, code: int, kind: str = "error") -> int:
    """Write one line to standard error, and return the exit code."""
    with contextlib.suppress(OutputError):
        sys.stdout.flush()
    print(f"mnist_dist: {kind}: {' '.join(str(message).splitlines())}", file=sys.stderr, flush=True)
    return code
