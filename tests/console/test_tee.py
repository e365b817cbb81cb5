"""The console whose lines are also copied elsewhere: the user's one gets every call, the copy every line."""

from __future__ import annotations

import pytest
from test_console import whole_run

from mnist_dist.console.console import Console, PlainConsole
from mnist_dist.console.tee import TeeConsole


class Calls(Console):
    """A console that notes all calls of its public methods."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[object, ...], dict[str, object]]] = []

    def __getattribute__(self, name: str) -> object:
        if name == "calls" or name.startswith("_"):
            return super().__getattribute__(name)
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def test_the_users_console_gets_every_call_as_if_alone() -> None:
    alone, shown = Calls(), Calls()
    whole_run(alone)
    whole_run(TeeConsole(shown))
    assert shown.calls == alone.calls
    assert {name for name, *_ in alone.calls} == {name for name in vars(Console) if not name.startswith("_")}


def test_lines_are_those_of_a_plain_console_from_the_first_one_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    lines: list[str] = []
    console = TeeConsole(Console())
    console.print("before")
    console.copy_lines_to(lines.append)
    whole_run(console)
    assert capsys.readouterr() == ("", "")
    plain = PlainConsole()
    plain.print("before")
    whole_run(plain)
    out, err = capsys.readouterr()
    assert [line for line in lines if not line.startswith("warning")] == out.splitlines()
    assert [line for line in lines if line.startswith("warning")] == err.splitlines()


def test_a_taker_of_lines_may_warn_itself() -> None:
    lines: list[str] = []
    console = TeeConsole(Console())

    def take(line: str) -> None:
        lines.append(line)
        if not line.startswith("warning"):
            console.warn(f"dropped {line}")

    console.copy_lines_to(take)
    console.print("a line")
    assert lines == ["a line", "warning: dropped a line"]
