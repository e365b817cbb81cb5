"""A process that is killed while it writes checkpoints leaves each one whole, or absent, and none lost that it had.

The child dies at a given line of Python, in the middle of a write, or whenever SIGKILL happens to reach it.
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
    load_checkpoint,
    prune_checkpoints,
    recover,
    save_checkpoint,
    step_of,
)

KILLED = 77
WHERE = ("checkpoint/manager.py", "checkpoint/format.py", "utils/files.py", "shutil.py", "pathlib.py")
FIRST = (1, 2, 3)


def prepare(root: Path) -> None:
    """Steps 1 to 3, in their first edition."""
    for step in FIRST:
        save_checkpoint(root, step, saved(1, step))


def work(root: Path) -> None:
    """Step 3 again, in its second edition, then steps 4 and 5; two are kept, and step 1, the best."""
    for step in (3, 4, 5):
        save_checkpoint(root, step, saved(2, step))
        prune_checkpoints(root, 2, 1, step)


def in_a_child(action: Callable[[], None]) -> int:
    """Do something in a process of its own; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if not child:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(count: int) -> Callable[..., Any]:
    """A tracer that ends the process before the line of this number of those that touch files."""
    left = count

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(WHERE):
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
    """Every write to a file is of a few bytes at a time, until as many as `count` are written."""
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
    """What a killed child may leave, and what the next process makes of it; the steps that are there."""
    for path in list_checkpoints(root):  # also for those who look before anybody has tidied up
        assert corruption(path) is None, path
    recover(root)
    assert not [path for path in root.iterdir() if path.name.startswith(".")]
    found = {step_of(path): load_checkpoint(path) for path in list_checkpoints(root)}
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
    """How many lines `work` has."""
    prepare(root)
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.endswith(WHERE):
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
    """The steps that are left by a child that ends at a point."""
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
    """So many numbers from 1 to `total`, evenly spread but never in step with anything."""
    generator = random.Random(0)
    return [1 + int((index + generator.random()) * total / count) for index in range(count)]


def test_killed_at_some_lines(template: Path, tmp_path: Path) -> None:
    lines = lines_of_work(tmp_path / "counted")
    left = {tuple(kill_at(template, tmp_path / "root", work_until_line, n)) for n in spread(lines - 1, 60)}
    assert {(1, 2, 3), (1, 3, 4), (1, 4, 5)} <= left  # the kills came at different times
    assert lines > 500


def test_killed_in_some_writes(template: Path, tmp_path: Path) -> None:
    written = 3 * sum(path.stat().st_size for path in (template / "step-00000003").iterdir())
    left = {tuple(kill_at(template, tmp_path / "root", work_until_byte, n)) for n in spread(written - 200, 40)}
    assert len(left) > 1


@pytest.mark.faults
@pytest.mark.parametrize("share", range(8))
def test_killed_at_every_line(share: int, template: Path, tmp_path: Path) -> None:
    """In eight parts, each as long as a test may be on a slow machine."""
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
    """SIGKILL, some time after the child has begun."""
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
    select.select([ours], [], [], seconds)  # nothing comes: this is the clock
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
