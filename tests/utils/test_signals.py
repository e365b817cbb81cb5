"""Which signals ask a run to stop, and which are left as they were."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from importlib.machinery import ExtensionFileLoader
from typing import Any

import pytest
from harness import run_ranks

from mnist_dist.utils.signals import ASKS_TO_STOP, WOULD_KILL, lasting_interrupts, stop_on_signals


def stops_by(names: list[str]) -> list[str]:
    """The signals after which a stop was requested; a process that lacks a handler is killed by its signal."""
    requests: list[int] = []
    stopped = []
    for name in names:
        with stop_on_signals(lambda: requests.append(1)):
            os.kill(os.getpid(), signal.Signals[name])
        if requests:
            stopped.append(name)
        requests.clear()
    return stopped


def test_all_signals_that_would_kill_a_run_ask_it_to_stop() -> None:
    names = [*ASKS_TO_STOP, *WOULD_KILL]
    assert run_ranks(1, stops_by, names) == [names]


def handlers_during(before: dict[str, Any]) -> tuple[list[bool], list[bool]]:
    """For each signal with this handler: whether it is replaced in the block, and whether it is restored after it."""
    for name, handler in before.items():
        signal.signal(signal.Signals[name], handler)
    with stop_on_signals(lambda: None):
        during = [signal.getsignal(signal.Signals[name]) != handler for name, handler in before.items()]
    return during, [signal.getsignal(signal.Signals[name]) == handler for name, handler in before.items()]


def own_handler(number: int, frame: object) -> None:
    """A handler of the program that embeds this one."""


@pytest.mark.parametrize(
    ("before", "replaced"),
    [
        ({"SIGHUP": signal.SIG_DFL, "SIGQUIT": signal.SIG_DFL}, [True, True]),
        ({"SIGHUP": signal.SIG_IGN, "SIGUSR2": signal.SIG_IGN}, [False, False]),  # nohup
        ({"SIGUSR2": own_handler, "SIGTERM": own_handler}, [False, True]),
    ],
)
def test_ignored_signals_stay_ignored_and_handlers_are_restored(before: dict[str, Any], replaced: list[bool]) -> None:
    assert run_ranks(1, handlers_during, before) == [(replaced, [True] * len(before))]


def signal_faulthandler(path: str) -> bool:
    with open(path, "w+") as file:
        faulthandler.register(signal.SIGUSR1, file)
        with stop_on_signals(lambda: None):
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        faulthandler.unregister(signal.SIGUSR1)
        file.seek(0)
        return file.read().count("most recent call first") == 2


def test_a_handler_that_python_does_not_know_stays(tmp_path: Any) -> None:
    assert run_ranks(1, signal_faulthandler, str(tmp_path / "stacks")) == [True]


def interrupt_twice(first: str, second: str) -> str:
    with stop_on_signals(lambda: None):
        os.kill(os.getpid(), signal.Signals[first])
        try:
            os.kill(os.getpid(), signal.Signals[second])
        except KeyboardInterrupt:
            return "interrupted"
    return "not interrupted"


@pytest.mark.parametrize(
    ("first", "second", "ending"),
    [
        ("SIGINT", "SIGINT", "interrupted"),
        ("SIGINT", "SIGQUIT", "interrupted"),
        ("SIGTERM", "SIGINT", "not interrupted"),
        ("SIGHUP", "SIGHUP", "not interrupted"),
    ],
)
def test_the_second_one_from_the_keyboard_interrupts_at_once(first: str, second: str, ending: str) -> None:
    assert run_ranks(1, interrupt_twice, first, second) == [ending]


def test_an_interrupt_that_a_launcher_sends_again_is_the_same_one() -> None:
    requests: list[int] = []
    with stop_on_signals(lambda: requests.append(1), repeat_seconds=60):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert len(requests) == 2


class Extension(ExtensionFileLoader):
    """Imports an extension during which Ctrl-C is pressed."""

    done = False

    def exec_module(self, module: Any) -> None:
        """Be interrupted, as an import within an extension's initialisation is."""
        os.kill(os.getpid(), signal.SIGINT)
        self.done = True


class Swallows:
    """Python prints the exceptions of a destructor, and goes on."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def interrupt_import() -> None:
    extension = Extension("extension", "extension.so")
    extension.exec_module(None)
    assert extension.done
    wait()


def interrupt_destructor() -> None:
    Swallows()
    wait()


WAIT_IS_OVER = threading.Event()


def wait() -> None:
    """Wait for the interrupt."""
    timer = threading.Timer(30, WAIT_IS_OVER.set)
    timer.start()
    try:
        WAIT_IS_OVER.wait()
    finally:
        timer.cancel()


def interrupt_to_another_error() -> None:
    """As C++ and Rust do with the exceptions of Python."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("initialization failed") from None


@pytest.mark.parametrize("action", [interrupt_import, interrupt_destructor, interrupt_to_another_error])
def test_an_interrupt_comes_through(action: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """What C code, a destructor and a library's handler make of KeyboardInterrupt is neither printed nor raised."""
    with pytest.raises(KeyboardInterrupt):
        with lasting_interrupts():
            action()
    assert not WAIT_IS_OVER.is_set()
    assert capfd.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_errors_without_an_interrupt_stay_as_they_are() -> None:
    with pytest.raises(ImportError), lasting_interrupts():
        raise ImportError
