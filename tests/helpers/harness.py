"""Runs a function in several real processes that communicate over gloo.

Cheap: a server process imports torch once and is then forked, so that a rank starts in milliseconds. Safe: the test
serves the rendezvous store on a free port; a rank that hangs writes its stack, and no rank outlives its test.

torch's own MultiProcessTestCase is internal, and each of its processes imports torch anew, which takes seconds.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import time
import traceback
import warnings
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
    # pytest, since multiprocessing imports the main module again; _dynamo and fsdp for the runs that compile or shard.
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

TIMEOUT_SECONDS = 180.0
"""For ranks that do not hang: a minute was too short for compilation on a busy machine."""
GRACE_SECONDS = 10.0
"""From a rank's timeout, at which it writes its stack and exits, until it is killed."""


@dataclass(frozen=True)
class Outcome:
    """How one rank ended: the value that its function returned, or its exception and traceback; its exit code."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""
    exit_code: int | None = None


class RanksFailed(AssertionError):
    """Some ranks raised, died or hung. The message has each one's traceback."""


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT_SECONDS, machines: int = 1
) -> list[Any]:
    """Call a module-level function in `world_size` processes; the values that they returned, by rank.

    Args:
        timeout: seconds until a rank that still runs counts as hung.
        machines: number of machines that the topology describes; all processes run on this one.

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
    timeout: float = TIMEOUT_SECONDS,
    machines: int = 1,
    absent: Sequence[int] = (),
    stopped: Sequence[int] = (),
) -> list[Outcome]:
    """As `run_ranks`, for ranks that are meant to fail: returns every outcome, and raises nothing.

    Args:
        absent: ranks that are never started.
        stopped: ranks that cannot end by themselves. Once the others have ended they are killed, as by a launcher.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with TemporaryDirectory() as folder, kill_at_exit() as processes:
        deadline = time.monotonic() + timeout
        connections: dict[int, Connection] = {}
        for rank in range(world_size):
            if rank in absent:
                continue
            connections[rank], child_end = CONTEXT.Pipe(duplex=False)
            variables = launcher_variables(rank, world_size, machines, store.port)
            setup = (child_end, variables, os.path.join(folder, str(rank)), timeout)
            processes[rank] = CONTEXT.Process(target=rank_main, args=(*setup, function, args), name=f"rank {rank}")
            processes[rank].start()
            child_end.close()
        awaited = {rank: connection for rank, connection in connections.items() if rank not in stopped}
        received = receive(awaited, deadline + GRACE_SECONDS)
        for rank in stopped:
            processes[rank].kill()
        for rank, process in processes.items():
            process.join(max(deadline + GRACE_SECONDS - time.monotonic(), 0.1))
            if process.exitcode is None:
                received.pop(rank, None)
        return [outcome_of(rank, processes.get(rank), received, Path(folder, str(rank))) for rank in range(world_size)]


def launcher_variables(rank: int, world_size: int, machines: int, port: int) -> dict[str, str]:
    """The environment variables that a launcher would set. The store is already served, as by torchrun's agent."""
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


def rank_main(
    connection: Connection,
    variables: dict[str, str],
    stack_file: str,
    timeout: float,
    function: Callable[..., Any],
    args: Any,
) -> None:
    """The main function of a rank's process. It ends by os._exit, as all children of multiprocessing do."""
    os.environ.update(variables)
    with open(stack_file, "w") as file:
        faulthandler.dump_traceback_later(timeout, exit=True, file=file)
        torch.set_num_threads(1)
        warnings.filterwarnings("error", module=r"mnist_dist(\.|$)")  # what a dependency says of our own calls
        try:
            answer = (function(*args), None, "")
        except BaseException as error:
            answer = (None, error, traceback.format_exc())
        # Plain pickle: multiprocessing's own would send tensors as shared memory, which ends with this process.
        connection.send_bytes(pickle.dumps(answer))
        faulthandler.cancel_dump_traceback_later()


def receive(connections: dict[int, Connection], deadline: float) -> dict[int, tuple[Any, BaseException | None, str]]:
    """Value, exception and traceback of each rank that sent them before the deadline."""
    received = {}
    waiting = {connection: rank for rank, connection in connections.items()}
    while waiting and (left := deadline - time.monotonic()) > 0:
        for connection in wait(list(waiting), left):
            assert isinstance(connection, Connection)
            rank = waiting.pop(connection)
            with contextlib.suppress(EOFError):
                received[rank] = pickle.loads(connection.recv_bytes())
    return received


def outcome_of(rank: int, process: Any, received: dict[int, Any], stack_file: Path) -> Outcome:
    """A rank's outcome, from what it sent and how its process ended."""
    if process is None:
        return Outcome()
    if rank in received:
        return Outcome(*received[rank], process.exitcode)
    how = "hung" if process.exitcode is None else f"died with exit code {process.exitcode}"
    stack = stack_file.read_text() if stack_file.exists() else ""
    return Outcome(trace=f"{how} without an answer\n{stack}", exit_code=process.exitcode)


@contextlib.contextmanager
def kill_at_exit() -> Iterator[dict[int, Any]]:
    """A dictionary for processes, which are killed at the end of the block."""
    processes: dict[int, Any] = {}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.join()
            process.close()
