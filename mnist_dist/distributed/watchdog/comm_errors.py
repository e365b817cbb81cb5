"""What an error says about another process: whether one was lost, and who never came to the meeting."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator

from mnist_dist.distributed.topology import Topology
from mnist_dist.utils.errors import EXIT_FAILED, TrainingError, UserError

STUCK_SECONDS = 10.0  # after run.timeout, that torch has to say by itself that it waited in vain

LOST_PEER = ("closed by peer", "reset by peer", "timed out", "timeout", "connection refused", "broken pipe", "nccl")


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exception says that another process ended or stopped answering."""
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return any(kind.__name__ == "DistError" for kind in type(error).__mro__) or any(mark in text for mark in LOST_PEER)


def is_timeout(error: BaseException) -> bool:
    """Whether a lost peer was waited for in vain, rather than seen to close its connection."""
    text = str(error).lower()
    return "timed out" in text or "timeout" in text


@contextlib.contextmanager
def rendezvous_errors(topology: Topology, timeout: float, present: Callable[[str], bool]) -> Iterator[None]:
    """Meanwhile, a process that is not there has not arrived.

    Args:
        timeout: seconds of run.timeout, for the message.
        present: whether the store that the processes meet at has a key.

    Raises:
        TrainingError: names the ranks that did not arrive in time.
        UserError: somebody else listens where they are to meet.
    """
    try:
        with abort_if_stuck(topology, timeout):
            yield
    except RuntimeError as error:
        if topology.world_size == 1 or not is_lost_peer(error):
            raise
        if "eaddrinuse" in str(error).lower():
            raise UserError(
                f"rank {topology.rank} of {topology.world_size} cannot listen at {topology.address}, which is in use: "
                "by another run (choose another port), or by another process that was given the same rank"
            ) from error
        absent = absent_ranks(error, topology.world_size, present)
        raise TrainingError(
            f"rank {topology.rank} of {topology.world_size} could not meet "
            f"{name_ranks(absent) if absent else 'the others'} at {topology.address} within run.timeout={timeout:g} s "
            f"({first_line(error)}); check that every machine was started with its own rank and this address"
        ) from error


@contextlib.contextmanager
def abort_if_stuck(topology: Topology, timeout: float) -> Iterator[None]:
    """Meanwhile, a process that still tries to reach the others after run.timeout says so and is ended.

    gloo tries again and again where packets are dropped, five times as long as it was told (seen in torch 2.15).
    """

    def end() -> None:
        who = f"rank {topology.rank}: rank {topology.rank} of {topology.world_size}"
        error = (
            f"{who} could not meet the others at {topology.address} within run.timeout={timeout:g} s (still trying to "
            "connect to them); check that no firewall drops what machines say to each other, at whatever port"
        )
        os.write(2, f"mnist_dist: error: {error}\n".encode())
        os._exit(EXIT_FAILED)

    timer = threading.Timer(timeout + STUCK_SECONDS, end)
    timer.daemon = True
    if topology.world_size == 1:
        yield
        return
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def absent_ranks(error: RuntimeError, world_size: int, present: Callable[[str], bool]) -> list[int]:
    """Who did not come to the meeting, as far as it can be known: empty where the error does not say it.

    gloo waits for one rank after the other, under a key of the meeting's store that ends in the rank's number, and
    says which one it was. The others that the store does not have either never came.

    Args:
        present: whether the store has a key.
    """
    if "trying to connect" in str(error):
        return [0]  # it, or its launcher, holds the store
    match = re.search(r"keys: /(\S*/)(\d+)$", first_line(error))
    if match is None:
        return []
    prefix, waited_for = match[1], int(match[2])
    return [rank for rank in range(world_size) if rank == waited_for or not present(f"{prefix}{rank}")]


def name_ranks(ranks: list[int]) -> str:
    """`rank 1`, `ranks 1, 3-5`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][-1] + 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    parts = [part for span in spans for part in ([f"{span[0]}-{span[-1]}"] if len(span) > 2 else map(str, span))]
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(parts)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without gloo's place in its source and its guesses; or its type."""
    lines = str(error).strip().splitlines()
    return re.sub(r"^\[\S+:\d+\] |\. This is typically .*", "", lines[0])[:200] if lines else type(error).__name__
