"""Read errors of torch.distributed: was another rank lost, and which ranks never joined?

The errors of torch's store and of NCCL have types of their own (DistError). gloo's are plain RuntimeErrors, which only
their text and the place where they were raised tell from others.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

from mnist_dist.distributed.topology import Topology
from mnist_dist.utils.errors import EXIT_FAILED, TrainingError, UserError

RENDEZVOUS_GRACE_SECONDS = 10.0
"""After run.timeout, torch has this long to raise its own timeout error before the process is ended."""

LOST_PEER_TEXTS = ("closed by peer", "reset by peer", "timed out", "timeout", "connection refused", "broken pipe")

COLLECTIVE_FILES = tuple(
    os.path.join(*parts)
    for parts in (
        ("mnist_dist", "distributed", "runtime.py"),
        ("mnist_dist", "distributed", "shared_memory.py"),
        ("torch", "distributed", ""),
        ("torch", "autograd", ""),
        ("torch", "nn", "parallel", "distributed.py"),
    )
)
"""Where Python's frames end in a collective. The backward pass is one: DistributedDataParallel's hooks run in it."""


def is_in_collective(frame: FrameType | None) -> bool:
    """Whether a thread with this innermost frame is in a collective."""
    return frame is not None and any(file in frame.f_code.co_filename for file in COLLECTIVE_FILES)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exception says that another rank ended or stopped answering.

    It is torch's DistError, or a plain RuntimeError with a text of gloo's that was raised in a collective: not in a
    function of the user's, whose own error may mention a timeout.
    """
    if any(base.__name__ == "DistError" for base in type(error).__mro__):
        return True
    if type(error) is not RuntimeError or not any(part in str(error).lower() for part in LOST_PEER_TEXTS):
        return False
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return is_in_collective(frames[-1] if frames else None)


def is_timeout(error: BaseException) -> bool:
    """Whether a lost peer was noticed by a timeout, not by its closed connection."""
    text = str(error).lower()
    return "timed out" in text or "timeout" in text


@contextlib.contextmanager
def rendezvous_errors(topology: Topology, timeout: float, has_key: Callable[[str], bool]) -> Iterator[None]:
    """Wrap the rendezvous: turn torch's errors into one line that names the ranks that did not join.

    Args:
        timeout: run.timeout in seconds.
        has_key: whether the rendezvous store has a key.

    Raises:
        TrainingError: some ranks did not join within `timeout`.
        UserError: the address of the rendezvous is in use.
    """
    try:
        with rendezvous_watchdog(topology, timeout):
            yield
    except RuntimeError as error:
        if topology.world_size == 1 or not is_lost_peer(error):
            raise
        if "eaddrinuse" in str(error).lower():
            raise UserError(
                f"rank {topology.rank} of {topology.world_size} cannot listen at {topology.address}, which is in use: "
                "by another run (choose another port), or by another process that was given the same rank"
            ) from error
        missing = ranks_not_joined(error, topology.world_size, has_key)
        raise TrainingError(
            f"rank {topology.rank} of {topology.world_size} could not connect to "
            f"{format_ranks(missing) if missing else 'the other ranks'} (rendezvous at {topology.address}) within "
            f"run.timeout={timeout:g} s: {first_line(error).rstrip('.')}; check that every machine was started, with "
            "its own rank and this address"
        ) from error


@contextlib.contextmanager
def rendezvous_watchdog(topology: Topology, timeout: float) -> Iterator[None]:
    """End this process if the block still runs RENDEZVOUS_GRACE_SECONDS after `timeout` seconds.

    Where a firewall drops packets, gloo keeps trying for five times the timeout it was given (seen in torch 2.15).
    """

    def end_process() -> None:
        error = (
            f"rank {topology.rank} of {topology.world_size} could not connect to the other ranks (rendezvous at "
            f"{topology.address}) within run.timeout={timeout:g} s: still trying to connect; check the address, and "
            "that no firewall blocks any port between the machines"
        )
        with contextlib.suppress(OSError):  # standard error may be closed, or its disk full
            os.write(2, f"mnist_dist: error: rank {topology.rank}: {error}\n".encode())
        os._exit(EXIT_FAILED)

    if topology.world_size == 1:
        yield
        return
    timer = threading.Timer(timeout + RENDEZVOUS_GRACE_SECONDS, end_process)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def ranks_not_joined(error: RuntimeError, world_size: int, has_key: Callable[[str], bool]) -> list[int]:
    """The ranks that did not join, by an error of the rendezvous; empty where the error does not tell.

    gloo waits for one rank after the other, each under a store key that ends in the rank, and its error names the key.
    Later ranks whose keys are not in the store did not join either.

    Args:
        has_key: whether the rendezvous store has a key.
    """
    if "trying to connect" in str(error):
        return [0]  # rank 0, or its launcher, serves the store
    match = re.search(r"keys: /(\S*/)(\d+)$", first_line(error))
    if match is None:
        return []
    prefix, awaited = match[1], int(match[2])
    return [rank for rank in range(world_size) if rank == awaited or not has_key(f"{prefix}{rank}")]


def format_ranks(ranks: list[int]) -> str:
    """`rank 1` or `ranks 1, 3-5`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][-1] + 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    parts = [part for span in spans for part in ([f"{span[0]}-{span[-1]}"] if len(span) > 2 else map(str, span))]
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(parts)}"


def first_line(error: BaseException) -> str:
    """First line of an error's message, without gloo's source location and guesses; its type if it has no message."""
    lines = str(error).strip().splitlines()
    return re.sub(r"^\[\S+:\d+\] |\. This is typically .*", "", lines[0])[:200] if lines else type(error).__name__
