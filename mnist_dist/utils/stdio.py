"""Standard output and standard error that may fail: a full disk, a reader that has gone, a closed descriptor.

Python raises the error at some print, and once more when it ends: a run would be lost for a line on the screen.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast


class OutputError(Exception):
    """Standard output cannot be written. The message is one line; the cause is the error of the write."""


class GuardedStream:
    """A text stream whose errors go to a handler. Each line is written at once; attributes are those of the stream.

    Args:
        stream: what to write to; None, as Python has it for a closed descriptor, fails.
        on_error: called with each OSError, or ValueError of a closed file.
    """

    def __init__(self, stream: TextIO | None, on_error: Callable[[Exception], None]) -> None:
        self.stream, self.on_error = stream, on_error
        self.before_write: Callable[[], None] | None = None
        self.after_write: Callable[[str], None] | None = None  # called with the text

    def write(self, text: str) -> int:
        """Write; characters that the encoding lacks become question marks. Returns the length of the text."""
        if self.before_write is not None:
            self.before_write()
        try:
            if self.stream is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                self.stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
        except (OSError, ValueError) as error:
            self.on_error(error)
        if text.endswith("\n"):
            self.flush()
        if self.after_write is not None:
            self.after_write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if the stream can."""
        try:
            if hasattr(self.stream, "flush"):
                cast(TextIO, self.stream).flush()
        except (OSError, ValueError) as error:
            self.on_error(error)

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        try:
            return hasattr(self.stream, "isatty") and cast(TextIO, self.stream).isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        """The stream's file descriptor. Raises OSError if it has none."""
        if not hasattr(self.stream, "fileno"):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return cast(TextIO, self.stream).fileno()

    @property
    def encoding(self) -> str:
        """The stream's encoding; UTF-8 if it does not say."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Within the block, a failing standard error is ignored, and a failing standard output raises OutputError."""
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, GuardedStream(sys.stdout, raise_output_error))
    sys.stderr = cast(TextIO, GuardedStream(sys.stderr, lambda error: None))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream, own in zip(before, (sys.__stdout__, sys.__stderr__), strict=True):
            if stream is own:
                discard_if_failing(stream)


def raise_output_error(error: Exception) -> None:
    """Raise OutputError from the error of a write."""
    raise OutputError(f"standard output: {describe(error)}") from error


def ignore_output_errors(consequence: str) -> None:
    """From here on, within `guarded_streams`, a failing standard output gives one warning on standard error instead.

    Args:
        consequence: what happens without standard output, for the warning.
    """
    errors: list[Exception] = []

    def warn_once(error: Exception) -> None:
        errors.append(error)
        if len(errors) == 1:
            print(f"warning: standard output: {describe(error)}; {consequence}", file=sys.stderr)

    if isinstance(sys.stdout, GuardedStream):
        sys.stdout.on_error = warn_once


def describe(error: Exception) -> str:
    """An error in words, without its number."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def discard_if_failing(stream: TextIO | None) -> None:
    """Flush a stream of this process. If that fails, point it at /dev/null: Python flushes it once more at exit."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            stream.flush()


@contextlib.contextmanager
def discarded_stdout() -> Iterator[None]:
    """Within the block, what native code and `print` write to descriptor 1 is discarded."""
    if sys.stdout is not None:
        sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # closed
            stdout = os.dup(1)
            stack.callback(os.close, stdout)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.close(null)
            stack.callback(os.dup2, stdout, 1)
        yield


def open_standard_descriptors() -> None:
    """Open /dev/null for each of the descriptors 0 to 2 that is closed.

    The next file or socket would get such a number, and all that libraries write to descriptor 1 or 2.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
