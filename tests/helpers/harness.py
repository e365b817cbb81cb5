"""Runs a function in several real processes that talk over gloo.

Cheap: a server process imports torch once and is then forked, so that a rank starts in milliseconds. Safe: the test
holds the store that the ranks meet at, on a port that the system chose; a rank that hangs says where, and none outlives
its test.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.distributed import TCPStore

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    # pytest, since multiprocessing imports the main module anew; _dynamo and fsdp, since a training run imports them.
    [
        "pytest",
        "torch",
        "torch._dynamo",
        "torch.distributed.fsdp",
        "accelerate",
        "mnist_dist.training.trainer",
        "mnist_dist.train",
    ]
)

GRACE = 10.0  # seconds between a rank's own deadline, at which it says where it hangs, and its end by force


@dataclass(frozen=True)
class Outcome:
    """How one rank ended: what its function returned, or the exception it raised; its exit code."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""
    exit_code: int | None = None


class RanksFailed(AssertionError):
    """Some ranks raised, died or hung; the message holds each one's traceback."""


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 60, machines: int = 1
) -> list[Any]:
    """Call a module-level function in `world_size` processes and return what each returned, by rank.

    Args:
        timeout: seconds until a rank that still runs counts as hung.
        machines: how many machines to pretend.

    Raises:
        RanksFailed: a rank raised, died or hung.
    """
    outcomes = try_ranks(world_size, function, *args, timeout=timeout, machines=machines)
    failures = [f"rank {rank}: {outcome.trace}" for rank, outcome in enumerate(outcomes) if outcome.trace]
    if failures:
        raise RanksFailed("\n\n".join(["", *failures])) from next(o.error for o in outcomes if o.trace)
    return [outcome.value for outcome in outcomes]


def try_ranks(
    world_size: int,
    function: Callable[..., Any],
    *args: Any,
    timeout: float = 60,
    machines: int = 1,
    absent: Sequence[int] = (),
    stopped: Sequence[int] = (),
) -> list[Outcome]:
    """As `run_ranks`, but for ranks that are meant to fail.

    Args:
        absent: ranks that are never started.
        stopped: ranks that cannot end by themselves: as by a launcher, they are killed once the others have answered.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with TemporaryDirectory() as folder, ended() as processes:
        deadline = time.monotonic() + timeout
        answers: dict[int, Connection] = {}
        for rank in range(world_size):
            if rank in absent:
                continue
            answers[rank], theirs = CONTEXT.Pipe(duplex=False)
            place = environment(rank, world_size, machines, store.port)
            setup = (theirs, place, os.path.join(folder, str(rank)), timeout)
            processes[rank] = CONTEXT.Process(target=enter, args=(*setup, function, args), name=f"rank {rank}")
            processes[rank].start()
            theirs.close()
        received = receive({rank: answers[rank] for rank in answers if rank not in stopped}, deadline + GRACE)
        for rank in stopped:
            processes[rank].kill()
        for rank, process in processes.items():
            process.join(max(deadline + GRACE - time.monotonic(), 0.1))
            if process.exitcode is None:
                received.pop(rank, None)
        return [finish(rank, processes.get(rank), received, Path(folder, str(rank))) for rank in range(world_size)]


def environment(rank: int, world_size: int, machines: int, port: int) -> dict[str, str]:
    """What a launcher would tell this rank; the store is served already, as by torchrun's agent."""
    local_world_size = world_size // machines
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank % local_world_size),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": "1",
    }


def enter(
    connection: Connection, place: dict[str, str], stack: str, timeout: float, function: Callable[..., Any], args: Any
) -> None:
    """A rank's whole life. It ends by os._exit, as all children of multiprocessing do."""
    os.environ.update(place)
    with open(stack, "w") as file:
        faulthandler.dump_traceback_later(timeout, exit=True, file=file)
        torch.set_num_threads(1)
        try:
            answer = (function(*args), None, "")
        except BaseException as error:
            answer = (None, error, traceback.format_exc())
        # Plain pickle: multiprocessing's own would lend tensors from memory that ends with this process.
        connection.send_bytes(pickle.dumps(answer))
        faulthandler.cancel_dump_traceback_later()


def receive(answers: dict[int, Connection], deadline: float) -> dict[int, tuple[Any, BaseException | None, str]]:
    """The answers of the ranks that gave one before the deadline."""
    received = {}
    waiting = {connection: rank for rank, connection in answers.items()}
    while waiting and (left := deadline - time.monotonic()) > 0:
        for connection in wait(list(waiting), left):
            assert isinstance(connection, Connection)
            rank = waiting.pop(connection)
            with contextlib.suppress(EOFError):
                received[rank] = pickle.loads(connection.recv_bytes())
    return received


def finish(rank: int, process: Any, received: dict[int, Any], stack: Path) -> Outcome:
    """A rank's outcome, from what it sent and how it ended."""
    if process is None:
        return Outcome()
    if rank in received:
        return Outcome(*received[rank], process.exitcode)
    how = "hung" if process.exitcode is None else f"died with exit code {process.exitcode}"
    where = stack.read_text() if stack.exists() else ""
    return Outcome(trace=f"{how} without an answer\n{where}", exit_code=process.exitcode)


@contextlib.contextmanager
def ended() -> Iterator[dict[int, Any]]:
    """Gives a dictionary to keep processes in; none of them is left afterwards."""
    processes: dict[int, Any] = {}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.join()
            process.close()
