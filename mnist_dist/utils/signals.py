"""Handlers for the signals that ask a run to stop (of a scheduler, `kill`, a keyboard, a closed terminal): set a flag.

The run stops later, at a step boundary that all ranks agree on, because a signal handler may not call a collective.
"""

from __future__ import annotations

import _thread
import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import FrameType
from typing import Any

from mnist_dist.utils.errors import Stopped

INTERRUPTS = ("SIGINT", "SIGQUIT")
"""Sent from a keyboard: Ctrl-C and Ctrl-\\. The second one ends the run at once."""
ASKS_TO_STOP = ("SIGTERM", "SIGINT", "SIGUSR1")
WOULD_KILL = ("SIGHUP", "SIGQUIT", "SIGUSR2", "SIGXCPU")
"""A closed terminal, Ctrl-\\, submitit's notice, a limit of CPU time. Where they are ignored (nohup) or have a handler
already, that is left as it is."""
PROC_STATUS = Path("/proc/self/status")
AGAIN_SECONDS = 0.05
"""From an interrupt that cannot be raised where it came to the next attempt."""
IMPORT_SECONDS = 10.0
"""An import of a C extension that takes longer is interrupted all the same."""


@contextlib.contextmanager
def stop_on_signals(request_stop: Callable[[], None], repeat_seconds: float = 0.0) -> Iterator[None]:
    """Call `request_stop` on the signals of ASKS_TO_STOP, and on those of WOULD_KILL whose action is the default one.

    A second Ctrl-C or Ctrl-\\ raises KeyboardInterrupt. The previous handlers are restored at the end. Handlers that
    Python does not know (faulthandler's) are left in place. Off the main thread, where Python allows no handlers,
    nothing is installed: the program that embeds this one handles its signals.

    Args:
        request_stop: runs inside the signal handler, so it may only set a flag.
        repeat_seconds: a second interrupt within this time of the first is the same one, sent again by a launcher.
    """
    first = math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if signal.Signals(number).name in INTERRUPTS:
            if time.monotonic() >= first + repeat_seconds:
                raise KeyboardInterrupt
            first = min(first, time.monotonic())
        request_stop()

    before: dict[int, Any] = {}
    for name in (*ASKS_TO_STOP, *WOULD_KILL):
        if not hasattr(signal, name):  # Windows has few of them
            continue
        number = int(getattr(signal, name))
        handler = signal.getsignal(number)
        is_foreign = handler is None or (handler == signal.SIG_DFL and is_caught(number))
        if not is_foreign and (name in ASKS_TO_STOP or handler == signal.SIG_DFL):
            before[number] = handler
    try:
        for number in before:
            signal.signal(number, handle)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def lasting_interrupts() -> Iterator[None]:
    """Ctrl-C within the block leaves it as KeyboardInterrupt or Stopped, and nothing else is printed about it.

    Python's own handler would raise it at once, anywhere. A C extension that is being imported makes another error of
    it, or a panic with a message of its own: the interrupt is raised after that import. In a destructor or a callback
    of a weak reference, of which an import has thousands, Python only prints it: it is raised again then.

    Nothing is done off the main thread, and where Ctrl-C is ignored or has a handler already.
    """
    if signal.getsignal(signal.SIGINT) != signal.default_int_handler or not is_main_thread():
        yield
        return
    first, print_unraisable = math.inf, sys.unraisablehook

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        first = min(first, time.monotonic())
        if imports_extension(frame) and time.monotonic() < first + IMPORT_SECONDS:
            interrupt_again()
        else:
            raise KeyboardInterrupt

    def raise_again(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            interrupt_again()
        else:
            print_unraisable(unraisable)

    signal.signal(signal.SIGINT, handle)
    sys.unraisablehook = raise_again
    try:
        yield
    except (KeyboardInterrupt, Stopped):  # Stopped: a program that keeps what it has when it is interrupted
        raise
    except BaseException as error:  # what C++ or Rust made of it
        if first < math.inf:
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = print_unraisable
        signal.signal(signal.SIGINT, signal.default_int_handler)


def imports_extension(frame: FrameType | None) -> bool:
    """Whether a C extension is being imported, in this frame or in one that called it."""
    while frame is not None:
        is_import = frame.f_code.co_name in ("create_module", "exec_module")
        if is_import and isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def interrupt_again() -> None:
    """Send SIGINT to this thread, the main one, in a moment: it ends a wait, too, which `interrupt_main` does not.

    May be called in a signal handler: it takes no lock of `threading`.
    """
    main_thread = threading.get_ident()

    def interrupt() -> None:
        time.sleep(AGAIN_SECONDS)
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main_thread, signal.SIGINT)
        else:  # Windows
            _thread.interrupt_main()

    _thread.start_new_thread(interrupt, ())


def leave_on_interrupt(leave: Callable[[], object]) -> None:
    """Call `leave` on Ctrl-C, unless that is ignored or has a handler already."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler and is_main_thread():
        signal.signal(signal.SIGINT, lambda number, frame: leave())


def is_main_thread() -> bool:
    """Whether this is the main thread, which alone may install handlers."""
    return threading.current_thread() is threading.main_thread()


def is_caught(number: int) -> bool:
    """Whether this process has a handler for a signal, also one that Python does not know; False where unknown."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = PROC_STATUS.read_text().splitlines()
        caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
        return bool(int(caught, 16) >> (number - 1) & 1)
    return False
