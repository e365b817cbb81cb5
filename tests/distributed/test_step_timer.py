"""StepTimer splits training time into phases by the host's clock, EventTimer by events of a stand-in for a GPU."""

from __future__ import annotations

import threading

import pytest
import torch

from mnist_dist.checkpoint.state import TrainProgress
from mnist_dist.distributed import step_timer
from mnist_dist.distributed.step_timer import EventTimer, NullTimer, Phase, StepTimer, build_step_timer
from mnist_dist.training.metric_logger import TrainTimer


class Clock:
    """The host's clock: one second later at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


class Stream:
    """A GPU that gets to the events of its stream only when the test lets it, and refuses to be waited for."""

    def __init__(self) -> None:
        self.recorded: list[StreamEvent] = []
        self.events = 0

    def create_event(self) -> StreamEvent:
        self.events += 1
        return StreamEvent(self)

    def run(self, *seconds: float) -> None:
        """Get to the next events, each so many seconds after the one before."""
        for each in seconds:
            event = self.recorded.pop(0)
            event.seconds = StreamEvent.now = StreamEvent.now + each


class StreamEvent:
    """What torch.cuda.Event(enable_timing=True) has of use here."""

    now = 0.0

    def __init__(self, stream: Stream) -> None:
        self.stream, self.seconds = stream, -1.0

    def record(self) -> None:
        self.seconds = -1.0
        self.stream.recorded.append(self)

    def query(self) -> bool:
        return self.seconds >= 0

    def elapsed_time(self, end: StreamEvent) -> float:
        assert self.query()
        assert end.query()
        return 1000 * (end.seconds - self.seconds)

    def synchronize(self) -> None:
        raise AssertionError("the host waits for the device")


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> StepTimer:
    monkeypatch.setattr(step_timer, "time", Clock())
    return StepTimer()


def known(seconds: dict[Phase, float]) -> dict[str, float]:
    """The phases that took time."""
    return {phase: each for phase, each in seconds.items() if each}


def step(timer: StepTimer) -> None:
    """One step as the trainer's, of DistributedDataParallel."""
    timer.enter("compute")
    timer.measured("data", lambda: None)()
    timer.end_compute()
    timer.enter("compute")
    timer.enter("optimizer")
    timer.enter("other")


def test_each_phase_has_its_time(timer: StepTimer) -> None:
    timer.resume()
    step(timer)
    assert known(timer.collect()) == {"other": 2, "compute": 3, "data": 1, "communication": 1, "optimizer": 1}
    timer.reset()
    assert known(timer.collect()) == {"other": 1}


def test_only_what_lies_between_resume_and_pause_is_measured(timer: StepTimer) -> None:
    train_timer = TrainTimer(TrainProgress(), timer)
    step(timer)
    assert known(timer.collect()) == {}
    train_timer.start()
    with timer.measure():
        pass
    with train_timer.paused():
        step(timer)
    with timer.measure():
        pass
    train_timer.stop()
    step(timer)
    assert known(timer.collect()) == {"communication": 2, "other": 4}


def test_a_collective_that_fails_is_measured_too(timer: StepTimer) -> None:
    timer.resume()
    with pytest.raises(RuntimeError), timer.measure():
        raise RuntimeError("a peer is gone")
    assert timer.collect()["communication"] == 1
    assert timer.phase == "other"


def test_other_threads_enter_no_phase(timer: StepTimer) -> None:
    timer.resume()
    thread = threading.Thread(target=timer.measured("data", lambda: None))
    thread.start()
    thread.join()
    assert timer.collect()["data"] == 0


def test_events_are_read_only_once_the_device_has_passed_them() -> None:
    stream = Stream()
    timer = EventTimer(stream.create_event)
    timer.resume()
    timer.reset()
    step(timer)
    assert known(timer.collect()) == {}
    stream.run(0, 0, 0.5, 0.125, 1)  # resume, reset, compute, data, compute
    assert known(timer.collect()) == {"other": 0.5, "compute": 0.125, "data": 1}
    stream.run(2, 4, 8, 16, 32)  # communication, compute, optimizer, other, the first collect
    assert known(timer.collect()) == {
        "other": 32.5,
        "compute": 10.125,
        "data": 1,
        "communication": 4,
        "optimizer": 16,
    }
    timer.pause()
    step(timer)
    stream.run(*[0.0] * len(stream.recorded))
    timer.reset()
    stream.run(0)
    assert known(timer.collect()) == {}


def test_events_are_used_again() -> None:
    stream = Stream()
    timer = EventTimer(stream.create_event)
    timer.resume()
    for _ in range(20):
        step(timer)
        stream.run(*[1.0] * len(stream.recorded))
        timer.collect()
        timer.reset()
    assert stream.events < 20


@pytest.mark.parametrize(
    ("device", "world_size", "sharded", "kind"),
    [
        *(("cpu", 1, False, NullTimer), ("cuda", 1, False, NullTimer), ("cpu", 2, True, NullTimer)),
        *(("cpu", 2, False, StepTimer), ("cuda", 2, False, EventTimer)),
    ],
)
def test_a_timer_fits_its_device(device: str, world_size: int, sharded: bool, kind: type[StepTimer]) -> None:
    timer = build_step_timer(torch.device(device), world_size, sharded)
    assert type(timer) is kind
    if kind is NullTimer:
        timer.resume()
        step(timer)
        timer.pause()
        assert known(timer.collect()) == {}
