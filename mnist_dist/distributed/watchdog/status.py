"""What a rank is doing: waiting in a collective, or busy elsewhere; and which ranks are missing from a collective."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

from mnist_dist.distributed.watchdog.comm_errors import first_line, is_in_collective, is_lost_peer, is_timeout

PeerState = Literal["waiting", "busy", "failed", "exited", "unresponsive"]
"""`waiting`: in a collective, or handling the error of one. `busy`: anywhere else. `failed`: ending by an error of its
own. `exited`: the process is gone. `unresponsive`: no answer, so stopped or unreachable."""


@dataclass(frozen=True)
class PeerStatus:
    """What a rank reports of itself, or what the others conclude where it reports nothing."""

    state: PeerState
    error: str = ""
    """First line of the error that it failed with."""
    stack: tuple[str, ...] = ()
    """Frames of its main thread as `file:line function`, the outermost first."""
    timed_out: bool = False
    """It waited in the collective for the whole of run.timeout."""
    missing_ranks: tuple[int, ...] = ()
    """Ranks that it found missing."""


def parse_status(message: dict[str, Any]) -> PeerStatus:
    """A status that came as JSON, which knows lists only."""
    tuples = {name: tuple(message[name]) for name in ("stack", "missing_ranks")}
    return PeerStatus(**{**message, **tuples})


def thread_status(thread: int, lost_peer_error: BaseException | None = None) -> PeerStatus:
    """Status of a thread of this process.

    Args:
        thread: its `threading.get_ident()`.
        lost_peer_error: the error by which this process noticed that a peer is lost, if it has.
    """
    frame = sys._current_frames().get(thread)
    stack = tuple(extract_stack(frame))
    error = lost_peer_error or current_exception(thread)
    if error is not None and (error is lost_peer_error or is_lost_peer(error)):
        return PeerStatus("waiting", first_line(error), stack, is_timeout(error))
    if is_in_collective(frame):
        return PeerStatus("waiting", "", stack)
    return PeerStatus("busy", "", stack)


def find_missing(statuses: dict[int, PeerStatus], own: PeerStatus) -> dict[int, PeerStatus]:
    """The ranks that are missing from the collective, with their status.

    Args:
        statuses: of the other ranks.
        own: of this rank, whose collective failed.

    A busy rank counts as missing only if some rank timed out, or if no other rank is missing. Otherwise it is merely
    on its way to the collective, in which it will notice the loss itself.
    """
    gone = {rank: other for rank, other in statuses.items() if other.state in ("unresponsive", "exited", "failed")}
    if gone and not own.timed_out and not any(other.timed_out for other in statuses.values()):
        return gone
    return {rank: other for rank, other in statuses.items() if rank in gone or other.state == "busy"}


def current_exception(thread: int) -> BaseException | None:
    """The exception that a thread is handling, in an `except` or a `finally`."""
    current = getattr(sys, "_current_exceptions")().get(thread)  # noqa: B009 (typeshed does not know it)
    return current[1] if isinstance(current, tuple) else current  # before Python 3.12: type, value, traceback


def extract_stack(frame: FrameType | None) -> list[str]:
    """A thread's frames, the outermost first. Reads no source files: their disk may be what hangs."""
    frames = [format_frame(*item) for item in traceback.walk_stack(frame)] if frame else []
    return frames[::-1]


def extract_traceback(error: BaseException) -> list[str]:
    """An exception's frames, from where it was caught to where it was raised."""
    return [format_frame(*item) for item in traceback.walk_tb(error.__traceback__)]


def format_frame(frame: FrameType, line: int) -> str:
    """`file:line function`."""
    return f"{os.path.basename(frame.f_code.co_filename)}:{line} {frame.f_code.co_name}"


def innermost_frames(stack: Sequence[str]) -> str:
    """The last four frames of a stack, in one line."""
    return " > ".join(stack[-4:]) or "an unknown place"


def format_stack(title: str, stack: Sequence[str]) -> str:
    """A title and a whole stack, one frame a line."""
    return "\n".join([f"mnist_dist: {title}:", *(f"    {frame}" for frame in stack), ""])
