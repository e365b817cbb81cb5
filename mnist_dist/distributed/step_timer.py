"""Time that this process spends in each phase of training, so that its own work can be told from waiting for others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch

Phase = Literal["data", "compute", "optimizer", "other", "communication"]
OWN_PHASES: tuple[Phase, ...] = ("data", "compute", "optimizer", "other")
"""Gathering the batch; the forward and backward pass; clipping, the update and the EMA; what lies between two steps."""

T = TypeVar("T")


class StepTimer:
    """Splits the time of training into phases, by the host's clock. It runs between `resume` and `pause`.

    Communication is the time in collectives: waiting for other ranks and the transfer itself are not told apart. DDP
    overlaps its all-reduce with backward; only the time from this rank's last gradient to the end of backward counts.

    One thread enters phases. Threads of a pool that share its work do not: their time is within its phases.
    """

    def __init__(self) -> None:
        self.seconds: dict[Phase, float] = dict.fromkeys((*OWN_PHASES, "communication"), 0.0)
        self.phase: Phase | None = None  # None while paused
        self.since = 0.0  # time.perf_counter() when the phase was entered
        self.thread = threading.get_ident()

    def resume(self) -> None:
        """Measure from here on."""
        self.phase = "other"
        self.since = time.perf_counter()

    def pause(self) -> None:
        """Stop measuring."""
        self.enter("other")
        self.phase = None

    def enter(self, phase: Phase) -> None:
        """Begin a phase, which ends the one before; does nothing while paused."""
        if self.phase is not None:
            now = time.perf_counter()
            self.seconds[self.phase] += now - self.since
            self.phase, self.since = phase, now

    def end_compute(self, *_: object) -> None:
        """End the compute of a backward pass; what follows is communication. Serves as an autograd hook."""
        self.enter("communication")

    @contextmanager
    def measure(self, phase: Phase = "communication") -> Iterator[None]:
        """Measure this block as a phase, also if it fails; then the phase before goes on."""
        before = self.phase
        self.enter(phase)
        try:
            yield
        finally:
            if before is not None:
                self.enter(before)

    def measured(self, phase: Phase, function: Callable[..., T]) -> Callable[..., T]:
        """A function whose calls are measured as a phase. Calls from other threads are not."""

        def call(*arguments: Any) -> T:
            before = self.phase
            if before is None or threading.get_ident() != self.thread:
                return function(*arguments)
            self.enter(phase)
            result = function(*arguments)
            self.enter(before)
            return result

        return call

    def collect(self) -> dict[Phase, float]:
        """The seconds of each phase since the last `reset`."""
        if self.phase is not None:
            self.enter(self.phase)
        return dict(self.seconds)

    def reset(self) -> None:
        """Begin anew: the time up to here does not count."""
        self.since = time.perf_counter()
        self.seconds.update(dict.fromkeys(self.seconds, 0.0))


class EventTimer(StepTimer):
    """A StepTimer by the clock of a GPU, from events that it records. It never waits for the GPU.

    The host launches work before the GPU gets to it. So a phase lasts from the moment at which the GPU is done with all
    that was launched before it, to the moment at which it is done with the phase's own work.

    Args:
        create_event: a new CUDA event that records times.
    """

    def __init__(self, create_event: Callable[[], Any]) -> None:
        super().__init__()
        self.create_event = create_event
        self.marks: list[tuple[Any, Phase | None]] = []  # events in the order of their recording, and what they begin
        self.free: list[Any] = []  # events to use again

    def resume(self) -> None:
        """See `StepTimer`."""
        self.phase = "other"
        self.mark()

    def pause(self) -> None:
        """See `StepTimer`."""
        if self.phase is not None:
            self.phase = None
            self.mark()

    def enter(self, phase: Phase) -> None:
        """See `StepTimer`."""
        if self.phase is not None and self.phase != phase:
            self.phase = phase
            self.mark()

    def mark(self) -> None:
        """Record an event at which the present phase begins."""
        event = self.free.pop() if self.free else self.create_event()
        event.record()
        self.marks.append((event, self.phase))

    def collect(self) -> dict[Phase, float]:
        """See `StepTimer`: of those phases whose end the GPU has passed."""
        self.mark()
        done = 0
        while done + 1 < len(self.marks) and self.marks[done + 1][0].query():
            (start, phase), (end, _) = self.marks[done : done + 2]
            if phase is not None:
                self.seconds[phase] += start.elapsed_time(end) / 1000
            self.free.append(start)
            done += 1
        del self.marks[:done]
        return dict(self.seconds)

    def reset(self) -> None:
        """See `StepTimer`."""
        self.free += [event for event, _ in self.marks]
        self.marks.clear()
        self.mark()
        self.seconds.update(dict.fromkeys(self.seconds, 0.0))


class NullTimer(StepTimer):
    """Measures nothing."""

    def resume(self) -> None:
        """Does nothing."""


def build_step_timer(device: torch.device, world_size: int, sharded: bool) -> StepTimer:
    """The timer of a rank.

    Args:
        sharded: whether the model is sharded by FSDP2, which runs collectives throughout the forward and backward pass.
            Then nothing is measured, as on one rank, which has no others to compare with.
    """
    if world_size == 1 or sharded:
        return NullTimer()
    if device.type == "cpu":
        return StepTimer()
    return EventTimer(lambda: torch.cuda.Event(enable_timing=True))
