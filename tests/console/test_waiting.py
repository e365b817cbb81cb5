"""The line that a command shows until it has something to print: on a terminal alone, and gone before the output."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator

import pytest

from mnist_dist.console import waiting
from mnist_dist.console.waiting import CLEAR, waiting_line
from mnist_dist.utils.stdio import guarded_streams

WORKING = f"{CLEAR}predict: working, 0 s"


class Terminal(io.StringIO):
    """A terminal, on which a test can wait for a text."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        self.written.set()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal on which the line appears at once, and is drawn once."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(waiting, "START_SECONDS", 0.0)
    monkeypatch.setattr(waiting, "REDRAW_SECONDS", 60.0)
    return Terminal()


@contextlib.contextmanager
def command_on(terminal: Terminal) -> Iterator[None]:
    """A command, with this terminal as its standard output and standard error."""
    with contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(terminal):
        with guarded_streams(), waiting_line("predict"):
            yield


def test_the_first_output_replaces_the_line(terminal: Terminal) -> None:
    with command_on(terminal):
        assert terminal.written.wait(30)
        print("test image 3: 3")
        print("and more")
    assert terminal.getvalue() == f"{WORKING}{CLEAR}test image 3: 3\nand more\n"


def test_a_text_that_announces_a_wait_brings_the_line_back(terminal: Terminal) -> None:
    announced = "testing the model ...\n"
    with command_on(terminal):
        print("testing the model ...")
        while announced + WORKING not in terminal.getvalue():
            assert terminal.written.wait(30)
            terminal.written.clear()
        print("written: report.html")
        print("and more")
    assert terminal.getvalue().endswith(f"{announced}{WORKING}{CLEAR}written: report.html\nand more\n")


def test_the_line_is_removed_before_an_error_is_reported(terminal: Terminal) -> None:
    with contextlib.suppress(ValueError), command_on(terminal):
        assert terminal.written.wait(30)
        raise ValueError
    assert terminal.getvalue() == f"{WORKING}{CLEAR}"


def test_a_quick_command_shows_no_line(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "START_SECONDS", 60.0)
    with command_on(terminal):
        print("test image 3: 3")
    assert terminal.getvalue() == "test image 3: 3\n"


@pytest.mark.parametrize(("variable", "value"), [("TERM", "dumb"), ("RANK", "1")])
def test_there_is_no_line_where_it_could_not_be_removed_or_on_other_ranks(
    variable: str, value: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with command_on(terminal):
        assert [each.name for each in threading.enumerate() if each.name == "waiting line"] == []
    assert terminal.getvalue() == ""


def test_there_is_no_line_in_a_file(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "isatty", lambda: False)
    with command_on(terminal):
        assert [each.name for each in threading.enumerate() if each.name == "waiting line"] == []
    assert terminal.getvalue() == ""
