"""Where a thread is, in words, and which processes are missing by what each one says of itself."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from mnist_dist.distributed.watchdog.comm_errors import first_line, is_lost_peer, is_timeout

# The innermost frame of a main thread that waits for other processes lies in one of these.
COLLECTIVES = tuple(
    os.path.join(*place)
    for place in (
        ("mnist_dist", "distributed", "runtime.py"),
        ("mnist_dist", "distributed", "shared_memory.py"),
        ("torch", "distributed", ""),
        ("torch", "autograd", ""),
    )
)


@dataclass(frozen=True)
class PeerStatus:
    """What a rank says of itself, or what can be said of one that says nothing."""

    kind: str
    """`waits` for others or has lost one, `busy` with something else, `failed` by an error, `ended`, `silent`."""
    text: str = ""
    stack: tuple[str, ...] = ()
    """`file:line function` of the main thread's frames, the outermost first."""
    timed_out: bool = False
    missing_ranks: tuple[int, ...] = ()
    """The ranks that this one found missing."""


def parse_status(message: dict[str, Any]) -> PeerStatus:
    """A standing that came as JSON."""
    lists = {name: tuple(message[name]) for name in ("stack", "missing_ranks")}
    return PeerStatus(**{**message, **lists})


def thread_status(thread: int, lost: BaseException | None = None) -> PeerStatus:
    """What a thread of this process is doing.

    Args:
        lost: the error that told it that another process is lost, if it is known.
    """
    frame = sys._current_frames().get(thread)
    stack = tuple(describe_frames(frame))
    error = lost or current_error(thread)
    if error is not None and is_lost_peer(error):
        return PeerStatus("waits", first_line(error), stack, is_timeout(error))
    if frame is not None and any(place in frame.f_code.co_filename for place in COLLECTIVES):
        return PeerStatus("waits", "", stack)
    return PeerStatus("busy", "", stack)


def find_missing(statuses: dict[int, PeerStatus], here: PeerStatus) -> dict[int, PeerStatus]:
    """Of the other ranks, those that are to blame, by rank.

    A rank that is merely busy is only blamed where somebody has waited for the whole timeout, or nobody else is left:
    it has not come to the exchange yet in which it will notice the loss.
    """
    gone = {rank: other for rank, other in statuses.items() if other.kind in ("silent", "ended", "failed")}
    if gone and not here.timed_out and not any(other.timed_out for other in statuses.values()):
        return gone
    return {rank: other for rank, other in statuses.items() if rank in gone or other.kind == "busy"}


def current_error(thread: int) -> BaseException | None:
    """The exception that a thread is handling, in an `except` or a `finally`."""
    current = getattr(sys, "_current_exceptions")().get(thread)  # noqa: B009 (typeshed does not know it)
    return current[1] if isinstance(current, tuple) else current  # before Python 3.12: type, value, traceback


def describe_frames(frame: FrameType | None) -> list[str]:
    """`file:line function`, the outermost first. Reads no source, which may lie on the disk that hangs."""
    found = [describe(*place) for place in traceback.walk_stack(frame)] if frame else []
    return found[::-1]


def describe_traceback(error: BaseException) -> list[str]:
    """The same of an exception's way, from where it is caught to where it was raised."""
    return [describe(*place) for place in traceback.walk_tb(error.__traceback__)]


def describe(frame: FrameType, line: int) -> str:
    """One frame."""
    return f"{os.path.basename(frame.f_code.co_filename)}:{line} {frame.f_code.co_name}"


def innermost(stack: Sequence[str]) -> str:
    """The end of a stack, in one line."""
    return " > ".join(stack[-4:]) or "an unknown place"


def dump(title: str, stack: Sequence[str]) -> str:
    """A whole stack, one frame a line."""
    return "\n".join([f"mnist_dist: {title}:", *(f"    {frame}" for frame in stack), ""])
