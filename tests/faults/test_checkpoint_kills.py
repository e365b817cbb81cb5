"""A process killed while it saves or prunes: every checkpoint is whole or absent, and no earlier one is lost.

A child process ends at a given line of Python, in the middle of a write, or at a random moment by SIGKILL.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from small_checkpoint import corruption, is_same, saved

from mnist_dist.checkpoint.manager import (
    list_checkpoints,
    load_verified,
    prune_checkpoints,
    recover,
    save_checkpoint,
    step_of,
)

KILLED = 77
TRACED_FILES = ("checkpoint/manager.py", "checkpoint/format.py", "utils/files.py", "shutil.py", "pathlib.py")
FIRST = (1, 2, 3)


def prepare(root: Path) -> None:
    """Save steps 1 to 3 with the data of seed 1."""
    for step in FIRST:
        save_checkpoint(root, step, saved(1, step))


def work(root: Path) -> None:
    """Save step 3 again, then steps 4 and 5, with the data of seed 2; keep two, and step 1 as the best."""
    for step in (3, 4, 5):
        save_checkpoint(root, step, saved(2, step))
        prune_checkpoints(root, 2, 1, step)


def in_a_child(action: Callable[[], None]) -> int:
    """Run `action` in a forked process. Returns its exit code, or minus the signal that ended it."""
    child = os.fork()
    if not child:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(count: int) -> Callable[..., Any]:
    """A trace function that ends the process before line number `count` of those in TRACED_FILES."""
    left = count

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(TRACED_FILES):
            return None
        if event == "line":
            left -= 1
            if not left:
                os._exit(KILLED)
        return trace

    return trace


def work_until_line(root: Path, count: int) -> None:
    sys.settrace(die_at(count))
    work(root)


def work_until_byte(root: Path, count: int) -> None:
    """As `work`, but the process ends after `count` bytes were written to files."""
    left = count
    original = Path.open

    def opened(path: Path, *arguments: Any, **options: Any) -> Any:
        file = original(path, *arguments, **options)
        write = file.write

        class Slow:
            def __enter__(self) -> Slow:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, data: bytes) -> None:
                nonlocal left
                if left < len(data):
                    write(data[:left])
                    file.flush()
                    os._exit(KILLED)
                left -= len(data)
                write(data)

        return Slow()

    Path.open = opened  # type: ignore[assignment, method-assign]
    work(root)


def check(root: Path) -> list[int]:
    """Assert that what a killed child left is sound, and that the next process recovers and continues.

    Returns:
        The steps that were there after `recover`.
    """
    for path in list_checkpoints(root):  # before `recover` too: other processes may read now
        assert corruption(path) is None, path
    recover(root)
    assert not [path for path in root.iterdir() if path.name.startswith(".")]
    found = {step_of(path): load_verified(path).parse() for path in list_checkpoints(root)}
    for step, content in found.items():
        editions = [edition for edition in (1, 2) if is_same(content, saved(edition, step))]
        assert editions, step
        assert 2 in editions or step in FIRST
    newest = max(found)
    assert 1 in found
    assert newest >= 3  # never lost, however often it is written
    assert {newest - 1, newest} <= found.keys()  # nothing was deleted before its successor was there
    work(root)
    assert [step_of(path) for path in list_checkpoints(root)] == [1, 4, 5]
    assert all(not path.name.startswith(".") for path in root.iterdir())
    return sorted(found)


def lines_of_work(root: Path) -> int:
    """Number of lines in TRACED_FILES that `work` executes."""
    prepare(root)
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.endswith(TRACED_FILES):
            return None
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work(root)
    finally:
        sys.settrace(before)
    return lines


def kill_at(template: Path, root: Path, action: Callable[[Path, int], None], count: int) -> list[int]:
    """Run `action` in a child until it ends at point `count`; check, and return, what it left."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root)
    assert in_a_child(lambda: action(root, count)) == KILLED
    return check(root)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template"
    prepare(path)
    return path


def spread(total: int, count: int) -> list[int]:
    """`count` numbers from 1 to `total`: one random number in each of `count` equal ranges."""
    generator = random.Random(0)
    return [1 + int((index + generator.random()) * total / count) for index in range(count)]


def test_killed_at_some_lines(template: Path, tmp_path: Path) -> None:
    lines = lines_of_work(tmp_path / "counted")
    left = {tuple(kill_at(template, tmp_path / "root", work_until_line, n)) for n in spread(lines - 1, 60)}
    assert {(1, 2, 3), (1, 3, 4), (1, 4, 5)} <= left  # the kills came at different stages
    assert lines > 500


def test_killed_in_some_writes(template: Path, tmp_path: Path) -> None:
    written = 3 * sum(path.stat().st_size for path in (template / "step-00000003").iterdir())
    left = {tuple(kill_at(template, tmp_path / "root", work_until_byte, n)) for n in spread(written - 200, 40)}
    assert len(left) > 1


@pytest.mark.faults
@pytest.mark.parametrize("share", range(8))
def test_killed_at_every_line(share: int, template: Path, tmp_path: Path) -> None:
    """In eight parts, so that each ends within the test timeout on a slow machine."""
    lines = lines_of_work(tmp_path / "counted")
    for line in range(1 + share, lines, 8):
        kill_at(template, tmp_path / "root", work_until_line, line)


def work_for_ever(root: Path, ready: int) -> None:
    os.write(ready, b"x")
    work(root)
    while True:  # the last one again and again
        save_checkpoint(root, 5, saved(2, 5))
        prune_checkpoints(root, 2, 1, 5)


def kill_after(template: Path, root: Path, seconds: float) -> None:
    """SIGKILL to the child, `seconds` after it has started to work; then `check`."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root)
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            work_for_ever(root, theirs)
        finally:
            os._exit(1)
    os.close(theirs)
    assert os.read(ours, 1) == b"x"
    select.select([ours], [], [], seconds)  # as a sleep: nothing is written to the pipe
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(ours)
    check(root)


def test_killed_at_some_moments(template: Path, tmp_path: Path) -> None:
    generator = random.Random(1)
    for _ in range(30):
        kill_after(template, tmp_path / "root", generator.random() * 0.03)


@pytest.mark.faults
def test_killed_at_many_moments(template: Path, tmp_path: Path) -> None:
    generator = random.Random(2)
    for _ in range(500):
        kill_after(template, tmp_path / "root", generator.random() * 0.05)
