"""All-gather through shared memory: same result as gloo; exits are noticed; gloo where memory cannot be shared."""

from __future__ import annotations

import mmap
import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
import torch
from harness import run_ranks, try_ranks
from small_training import BASICS, open_trainer

from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.loader import load
from mnist_dist.distributed import shared_memory
from mnist_dist.distributed.runtime import Runtime, start_runtime
from mnist_dist.distributed.shared_memory import SharedMemoryGather, open_shared_memory, segment_size
from mnist_dist.distributed.topology import read_topology

IS_SUPPORTED = platform.machine() == "x86_64" and hasattr(os, "pidfd_open") and Path("/dev/shm").is_dir()
pytestmark = pytest.mark.skipif(not IS_SUPPORTED, reason="shared memory is for x86 Linux with /dev/shm")
GATHERS = 3000


def start() -> Any:
    """The runtime of this rank, as a context manager."""
    return start_runtime(load(BASICS).config, read_topology())


def open_gather(runtime: Runtime, capacity: int = 800, timeout: float = 30) -> SharedMemoryGather:
    """The shared memory of the runtime's processes."""
    gather = open_shared_memory(runtime.rank, capacity, timeout, runtime.all_gather_object)
    assert gather is not None
    return gather


def remaining_files() -> list[Path]:
    """This package's files in /dev/shm whose process has ended. (Those of other runs on this machine are in use.)"""
    files = Path("/dev/shm").glob("mnist_dist-*")
    return [file for file in files if not psutil.pid_exists(int(file.name.split("-")[1]))]


def gather_many() -> tuple[bool, list[bool], list[bool]]:
    """Gather many times, with other rows each time and a pause now and then.

    Returns:
        whether all rows were right, the flags that this rank sent, and those that came back.
    """
    with start() as runtime:
        gather, rank = open_gather(runtime), runtime.rank
        generator = random.Random(rank)
        right, sent, received = True, [], []
        for number in range(GATHERS):
            if generator.random() < 0.002:
                time.sleep(0.003)  # long enough for the others to sleep between polls
            sent.append(generator.random() < 0.1)
            values = torch.arange(200, dtype=torch.float32) + 1000 * rank + number
            rows, any_flag = gather.all_gather(values.view(2, 100), flag=sent[-1])
            received.append(any_flag)
            expected = [torch.arange(200.0).view(2, 100) + 1000 * other + number for other in range(runtime.world_size)]
            right = right and torch.equal(rows, torch.cat(expected))
        gather.close()
        return right, sent, received


@pytest.mark.parametrize("world_size", [2, 3])
def test_each_all_gather_returns_every_row_and_whether_any_flag_is_set(world_size: int) -> None:
    answers = run_ranks(world_size, gather_many)
    expected = [any(flags) for flags in zip(*(sent for _, sent, _ in answers), strict=True)]
    assert True in expected
    assert False in expected
    for right, _, received in answers:
        assert right
        assert received == expected
    assert not remaining_files()


def gather_dtypes() -> list[Any]:
    with start() as runtime:
        gather = open_gather(runtime)
        dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int8]
        tensors = [torch.full((1, 3), runtime.rank, dtype=dtype) for dtype in dtypes]
        tensors.append(torch.full((), runtime.rank)[None])
        return [gather.all_gather(tensor)[0].tolist() for tensor in tensors]


def test_any_dtype_is_gathered() -> None:
    assert run_ranks(2, gather_dtypes) == [[[[0] * 3, [1] * 3]] * 5 + [[0, 1]]] * 2


def gather_without_rank_1(how: str) -> str:
    """The error of an all-gather that rank 1 does not join."""
    with start() as runtime:
        gather = open_gather(runtime, timeout=0.5 if how == "late" else 30)
        if runtime.rank == 1:
            if how == "killed":
                os.kill(os.getpid(), 9)
            runtime.all_gather_object(None)
            return ""
        with pytest.raises(RuntimeError) as error:
            gather.all_gather(torch.zeros(1, 3))
        if how == "late":
            runtime.all_gather_object(None)
        return str(error.value)


def test_a_process_that_exits_is_noticed_at_once() -> None:
    start = time.monotonic()
    assert try_ranks(2, gather_without_rank_1, "killed")[0].value == "Connection closed by peer: rank 1 has exited"
    assert time.monotonic() - start < 25  # the timeout is 30 s


def test_a_process_that_does_not_join_is_waited_for_until_the_timeout() -> None:
    assert run_ranks(2, gather_without_rank_1, "late")[0] == "Timed out waiting 500ms for rank 1"


def refuse(*_: Any) -> Any:
    raise OSError(28, "No space left on device")


OBSTACLES: dict[str, Callable[[pytest.MonkeyPatch, int], None]] = {
    "another processor": lambda patch, rank: patch.setattr(platform, "machine", lambda: "aarch64"),
    "another processor on one rank": lambda patch, rank: patch.setattr(
        platform, "machine", lambda: "aarch64" if rank else "x86_64"
    ),
    "another PID namespace": lambda patch, rank: patch.setattr(shared_memory, "pid_namespace", lambda: f"space {rank}"),
    "no room": lambda patch, rank: patch.setattr(os, "posix_fallocate", refuse),
    "no /dev/shm": lambda patch, rank: patch.setattr(shared_memory, "create_segment", lambda size: None),
    "no pidfd_open on one rank": lambda patch, rank: patch.setattr(os, "pidfd_open", refuse) if rank else None,
}


def test_what_was_opened_is_closed_if_one_process_cannot_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def open_first(pid: int) -> int:
        if opened:
            refuse()
        opened.append(os.dup(0))
        return opened[0]

    monkeypatch.setattr(os, "pidfd_open", open_first, raising=False)
    with pytest.raises(OSError, match="No space"):
        SharedMemoryGather(mmap.mmap(-1, segment_size(3, 64)), 0, 64, [os.getpid()] * 3, 1.0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def train(obstacle: str = "") -> tuple[bool, str]:
    """Whether memory is shared, and the digest of the weights of a small run."""
    topology = read_topology()
    arguments = ["--train.batch_size=24", "--train.max_steps=7", "--train.shards=4"]
    config = load([*BASICS, *arguments], topology.world_size).config
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        if obstacle:
            OBSTACLES[obstacle](patch, topology.rank)
        with start_runtime(config, topology) as runtime:
            trainer = open_trainer(runtime, config, Path(folder), (24 * 3, 20))
            trainer.train()
            return runtime.shared_memory is not None, weights_sha256(trainer.state.model)


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_if_one_rank_cannot_share_memory_none_does(obstacle: str) -> None:
    shared = run_ranks(2, train)
    assert shared[0][0]
    assert run_ranks(2, train, obstacle) == [(False, shared[0][1])] * 2
    assert not remaining_files()
