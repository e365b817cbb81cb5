"""Exchange small tensors between the processes of one machine through memory that they share.

A message over gloo passes four threads in two processes, each of which may have to be woken: 1.3 ms for 115 KB on two
busy cores. Here a process writes its row, then the number of the exchange, and looks at the others' numbers until all
are there.

For x86, whose processors show stores to each other in their order. Elsewhere, and where processes cannot see each
other's memory or end, there is none of this, and gloo does it.
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

LINE = 64  # bytes of a processor's cache line: each process's numbers have their own
SPINS = 2000  # looks, of about 1 us, before a process sleeps between them
NAP_SECONDS = 0.0002
LOOKS = 100  # between two times that the others are seen to be alive


class SharedMemoryGather:
    """One process's view of the memory.

    There are two sets of rows, used in turn: nobody writes into a set before all have read it, because they have then
    written into the other one.

    Args:
        memory: of `size_of(world_size, capacity)` bytes, zeros at first, shared by all.
        capacity: bytes that one process's part may have, a multiple of 64.
        pids: of all processes, by rank.
        timeout: seconds to wait for another process.

    Raises:
        OSError: this system cannot watch a process.
    """

    def __init__(self, memory: mmap.mmap, rank: int, capacity: int, pids: list[int], timeout: float) -> None:
        self.memory, self.rank, self.capacity, self.timeout = memory, rank, capacity, timeout
        self.numbers = memoryview(memory)[: LINE * len(pids)].cast("q")
        self.number = 0  # of the last exchange
        self.ends = {os.pidfd_open(pid): other for other, pid in enumerate(pids) if other != rank}
        self.poll = select.poll()
        for descriptor in self.ends:
            self.poll.register(descriptor, select.POLLIN)

    def all_gather(self, rows: Tensor, flag: bool = False) -> tuple[Tensor, bool]:
        """The rows (n, ...) of every rank, in rank order, (world_size * n, ...); and whether any rank gave a true flag.

        Raises:
            RuntimeError: another process has ended, or did not come within the timeout.
        """
        self.number += 1
        world_size, turn = len(self.ends) + 1, self.number % 2
        start = LINE * world_size + turn * world_size * self.capacity
        every = [self.view(rows, start + rank * self.capacity) for rank in range(world_size)]
        every[self.rank].copy_(rows)
        own = self.rank * LINE // 8
        self.numbers[own + 1 + turn] = flag
        self.numbers[own] = self.number  # last: who sees it sees the rest
        self.wait()
        return torch.cat(every), any(self.numbers[1 + turn :: LINE // 8])

    def view(self, rows: Tensor, offset: int) -> Tensor:
        """The memory at an offset as a tensor like `rows`."""
        flat = torch.frombuffer(self.memory, dtype=rows.dtype, count=rows.numel(), offset=offset)
        return flat.view(rows.shape)

    def wait(self) -> None:
        """Until every process is at this exchange."""
        looks, deadline = 0, time.monotonic() + self.timeout
        while late := [rank for rank, number in enumerate(self.numbers[:: LINE // 8]) if number < self.number]:
            looks += 1
            if looks < SPINS:
                os.sched_yield()
            else:
                time.sleep(NAP_SECONDS)
            if looks % LOOKS == 0:
                for descriptor, _ in self.poll.poll(0):
                    if self.ends[descriptor] in late:
                        raise RuntimeError(f"Connection closed by peer: rank {self.ends[descriptor]} has ended")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"Timed out waiting {1000 * self.timeout:.0f}ms for rank {late[0]}")

    def close(self) -> None:
        """Let go of everything."""
        for descriptor in self.ends:
            os.close(descriptor)
        self.ends = {}


def size_of(world_size: int, capacity: int) -> int:
    """Bytes of memory that so many processes need."""
    return world_size * (LINE + 2 * capacity)


def open_shared_memory(
    rank: int, capacity: int, timeout: float, gather: Callable[[Any], list[Any]]
) -> SharedMemoryGather | None:
    """Memory that all processes share, or None on all of them where any one cannot.

    Args:
        capacity: bytes that one process's part may have.
        timeout: seconds to wait for another process, in each exchange.
        gather: gives every rank's value, by rank, on every process.
    """
    capacity = math.ceil(capacity / LINE) * LINE
    space = process_space() if platform.machine() in ("x86_64", "AMD64") and hasattr(os, "pidfd_open") else ""
    facts = gather((os.getpid(), space))
    pids, spaces = [pid for pid, _ in facts], {space for _, space in facts}
    if len(spaces) > 1 or not space:
        return None
    own = create(size_of(len(pids), capacity)) if rank == 0 else None
    rows: SharedMemoryGather | None = None
    try:
        path = gather(own)[0]
        if path is not None:
            with contextlib.suppress(OSError), Path(path).open("r+b") as file:
                rows = SharedMemoryGather(mmap.mmap(file.fileno(), 0), rank, capacity, pids, timeout)
        everywhere = all(gather(rows is not None))
    finally:
        if own is not None:
            Path(own).unlink()
    if rows is not None and not everywhere:
        rows.close()
    return rows if everywhere else None


def create(size: int) -> str | None:
    """A file of so many zeros in memory, for this user only; None where there is no room."""
    try:
        descriptor, path = tempfile.mkstemp(prefix="mnist_dist-", dir="/dev/shm")
    except OSError:
        return None
    try:
        os.posix_fallocate(descriptor, 0, size)  # not only reserved: where there is no room, a later write would kill
    except OSError:
        Path(path).unlink()
        return None
    finally:
        os.close(descriptor)
    return path


def process_space() -> str:
    """What processes that can watch each other have in common; empty where it cannot be told."""
    try:
        return f"{os.readlink('/proc/self/ns/pid')} {Path('/proc/sys/kernel/random/boot_id').read_text()}"
    except OSError:
        return ""
