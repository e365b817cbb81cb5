"""All-gather of small tensors between the processes of one machine, through shared memory.

gloo over loopback takes 1.3 ms for 115 KB on two busy cores, since a message wakes four threads in two processes. torch
and Python can share memory between processes, but have no barrier for processes that a launcher started separately.
Here each process writes its rows, then a sequence number, and polls the others' sequence numbers.

For x86 only, where other processors see stores in program order. Elsewhere, and if a process cannot watch the others
for their exit or has no room in /dev/shm, `open_shared_memory` gives None, and the runtime uses gloo.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import platform
import select
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CACHE_LINE = 64
"""Bytes. Each process's header has a cache line of its own."""
SPIN_POLLS = 2000
"""Busy-wait polls (about 1 µs each) before sleeping between polls."""
SLEEP_SECONDS = 0.0002
"""Between two polls, after SPIN_POLLS."""
LIVENESS_POLLS = 100
"""Polls between two checks that the other processes are alive."""


class SharedMemoryGather:
    """All-gather for one of the processes that share a memory.

    The memory starts with a header per process, of three int64: the sequence number of its last all-gather, and its
    flag in each of two buffers. The two buffers follow, each with room for every process's rows, and are used in turn.
    No process overwrites a buffer that another one still reads: all have joined the all-gather in between, which uses
    the other buffer.

    Args:
        memory: of `segment_size(world_size, capacity)` bytes, initially zeros, shared by all.
        capacity: bytes for one process's rows, a multiple of 64.
        pids: process ids of all ranks, by rank.
        timeout: seconds to wait for another process.

    Raises:
        OSError: this system cannot watch a process (`pidfd_open`).
    """

    def __init__(self, memory: mmap.mmap, rank: int, capacity: int, pids: list[int], timeout: float) -> None:
        self.memory, self.rank, self.capacity, self.timeout = memory, rank, capacity, timeout
        self.headers = memoryview(memory)[: CACHE_LINE * len(pids)].cast("q")
        self.sequence = 0  # of the last all-gather
        self.pidfds: dict[int, int] = {}  # rank by descriptor
        self.exits = select.poll()
        try:
            for other, pid in enumerate(pids):
                if other != rank:
                    pidfd = os.pidfd_open(pid)
                    self.pidfds[pidfd] = other
                    self.exits.register(pidfd, select.POLLIN)
        except OSError:
            self.close()
            raise

    def all_gather(self, rows: Tensor, flag: bool = False) -> tuple[Tensor, bool]:
        """Gather the rows (n, ...) of every process, by rank: (world_size * n, ...).

        Args:
            rows: on the CPU, of the same shape and dtype on every process, `capacity` bytes at most.
            flag: a flag to send along.

        Returns:
            the gathered rows, and whether the flag of any process is set.

        Raises:
            RuntimeError: another process exited, or did not join within the timeout.
        """
        self.sequence += 1
        world_size, buffer = len(self.pidfds) + 1, self.sequence % 2
        start = CACHE_LINE * world_size + buffer * world_size * self.capacity
        slots = [self.view(rows, start + rank * self.capacity) for rank in range(world_size)]
        slots[self.rank].copy_(rows)
        header = self.rank * CACHE_LINE // 8
        self.headers[header + 1 + buffer] = flag
        self.headers[header] = self.sequence  # last: a process that sees it sees the rows and the flag
        self.wait()
        any_flag = any(self.headers[1 + buffer :: CACHE_LINE // 8])
        return torch.cat(slots), any_flag

    def view(self, rows: Tensor, offset: int) -> Tensor:
        """The memory at an offset in bytes, as a tensor of the shape and dtype of `rows`."""
        flat = torch.frombuffer(self.memory, dtype=rows.dtype, count=rows.numel(), offset=offset)
        return flat.view(rows.shape)

    def wait(self) -> None:
        """Wait until every process has joined this all-gather."""
        polls, deadline = 0, time.monotonic() + self.timeout
        while late := [rank for rank, seen in enumerate(self.headers[:: CACHE_LINE // 8]) if seen < self.sequence]:
            polls += 1
            if polls < SPIN_POLLS:
                os.sched_yield()
            else:
                time.sleep(SLEEP_SECONDS)
            if polls % LIVENESS_POLLS == 0:
                for pidfd, _ in self.exits.poll(0):
                    if self.pidfds[pidfd] in late:
                        raise RuntimeError(f"Connection closed by peer: rank {self.pidfds[pidfd]} has exited")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"Timed out waiting {1000 * self.timeout:.0f}ms for rank {late[0]}")

    def close(self) -> None:
        """Close the file descriptors of the other processes."""
        for pidfd in self.pidfds:
            os.close(pidfd)
        self.pidfds = {}


def segment_size(world_size: int, capacity: int) -> int:
    """Bytes of the memory: a header and two slots of `capacity` bytes per process."""
    return world_size * (CACHE_LINE + 2 * capacity)


def open_shared_memory(
    rank: int, capacity: int, timeout: float, all_gather: Callable[[Any], list[Any]]
) -> SharedMemoryGather | None:
    """Open a memory that all processes share; None on all of them if any one cannot.

    Args:
        capacity: bytes for one process's rows.
        timeout: seconds to wait for another process, in each all-gather.
        all_gather: gives every rank's value, by rank, on every rank.
    """
    capacity = math.ceil(capacity / CACHE_LINE) * CACHE_LINE
    is_supported = platform.machine() in ("x86_64", "AMD64") and hasattr(os, "pidfd_open")
    answers = all_gather((os.getpid(), pid_namespace() if is_supported else ""))
    pids, namespaces = [pid for pid, _ in answers], {namespace for _, namespace in answers}
    if len(namespaces) > 1 or "" in namespaces:
        return None
    own_path = create_segment(segment_size(len(pids), capacity)) if rank == 0 else None
    gather: SharedMemoryGather | None = None
    try:
        path = all_gather(own_path)[0]
        if path is not None:
            with contextlib.suppress(OSError), Path(path).open("r+b") as file:
                gather = SharedMemoryGather(mmap.mmap(file.fileno(), 0), rank, capacity, pids, timeout)
        everywhere = all(all_gather(gather is not None))
    finally:
        if own_path is not None:
            Path(own_path).unlink()
    if gather is not None and not everywhere:
        gather.close()
    return gather if everywhere else None


def create_segment(size: int) -> str | None:
    """Path of a new file of `size` zeros in /dev/shm, for this user only; None if there is no room."""
    try:
        descriptor, path = tempfile.mkstemp(prefix=f"mnist_dist-{os.getpid()}-", dir="/dev/shm")
    except OSError:
        return None
    try:
        os.posix_fallocate(descriptor, 0, size)  # not only truncate: without room, a later write would be a SIGBUS
    except OSError:
        Path(path).unlink()
        return None
    finally:
        os.close(descriptor)
    return path


def pid_namespace() -> str:
    """Identifies machine and PID namespace: processes that share both can watch each other. Empty if unknown."""
    try:
        return f"{os.readlink('/proc/self/ns/pid')} {Path('/proc/sys/kernel/random/boot_id').read_text()}"
    except OSError:
        return ""
