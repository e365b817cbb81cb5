"""Rows through memory: the same as over gloo, noticed ends, and gloo wherever it cannot be."""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from harness import run_ranks, try_ranks
from rehearsal import BASICS, open_trainer

from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.config.loader import load
from mnist_dist.distributed import shared_memory
from mnist_dist.distributed.runtime import Runtime, start_runtime
from mnist_dist.distributed.shared_memory import SharedMemoryGather, open_shared_memory
from mnist_dist.distributed.topology import read_topology

HERE = platform.machine() == "x86_64" and hasattr(os, "pidfd_open") and Path("/dev/shm").is_dir()
pytestmark = pytest.mark.skipif(not HERE, reason="shared rows are for x86 Linux with /dev/shm")
EXCHANGES = 3000


def joined() -> Any:
    """The runtime of this rank, as a context manager."""
    return start_runtime(load(BASICS).config, read_topology())


def opened(runtime: Runtime, capacity: int = 800, timeout: float = 30) -> SharedMemoryGather:
    """Shared rows, which must be possible."""
    rows = open_shared_memory(runtime.rank, capacity, timeout, runtime.all_gather_object)
    assert rows is not None
    return rows


def left_behind() -> list[Path]:
    """This package's files in memory."""
    return list(Path("/dev/shm").glob("mnist_dist-*"))


def exchange_much() -> tuple[bool, list[bool], list[bool]]:
    """Many exchanges of rows that change each time, now and then with a pause; who asked when."""
    with joined() as runtime:
        rows, rank = opened(runtime), runtime.rank
        mine = random.Random(rank)
        right, asked, heard = True, [], []
        for number in range(EXCHANGES):
            if mine.random() < 0.002:
                time.sleep(0.003)  # so that others come to sleep, too
            asked.append(mine.random() < 0.1)
            values = torch.arange(200, dtype=torch.float32) + 1000 * rank + number
            found = rows.gather(values.view(2, 100), asking=asked[-1])
            heard.append(rows.asked)
            expected = [torch.arange(200.0).view(2, 100) + 1000 * other + number for other in range(runtime.world_size)]
            right = right and torch.equal(found, torch.cat(expected))
        rows.close()
        return right, asked, heard


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_exchange_brings_every_row_and_whether_anybody_asked(world_size: int) -> None:
    answers = run_ranks(world_size, exchange_much)
    expected = [any(asked) for asked in zip(*(asked for _, asked, _ in answers), strict=True)]
    assert True in expected
    assert False in expected
    for right, _, heard in answers:
        assert right
        assert heard == expected
    assert not left_behind()


def exchange_kinds() -> list[Any]:
    with joined() as runtime:
        rows = opened(runtime)
        kinds = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int8]
        return [rows.gather(torch.full((1, 3), runtime.rank, dtype=kind)).tolist() for kind in kinds] + [
            rows.gather(torch.full((), runtime.rank)[None]).tolist()
        ]


def test_any_kind_of_number_fits() -> None:
    assert run_ranks(2, exchange_kinds) == [[[[0] * 3, [1] * 3]] * 5 + [[0, 1]]] * 2


def part(how: str) -> str:
    """One exchange that rank 1 takes no part in."""
    with joined() as runtime:
        rows = opened(runtime, timeout=0.5 if how == "late" else 30)
        if runtime.rank == 1:
            if how == "killed":
                os.kill(os.getpid(), 9)
            runtime.all_gather_object(None)
            return ""
        with pytest.raises(RuntimeError) as error:
            rows.gather(torch.zeros(1, 3))
        if how == "late":
            runtime.all_gather_object(None)
        return str(error.value)


def test_a_process_that_ends_is_noticed_at_once() -> None:
    begin = time.monotonic()
    assert try_ranks(2, part, "killed")[0].value == "Connection closed by peer: rank 1 has ended"
    assert time.monotonic() - begin < 25  # the exchange itself would wait for 30 s


def test_a_process_that_does_not_come_is_waited_for_so_long() -> None:
    assert run_ranks(2, part, "late")[0] == "Timed out waiting 500ms for rank 1"


def refuse(*_: Any) -> Any:
    raise OSError(28, "No space left on device")


HINDRANCES: dict[str, Callable[[pytest.MonkeyPatch, int], None]] = {
    "another processor": lambda patch, rank: patch.setattr(platform, "machine", lambda: "aarch64"),
    "another processor on one rank": lambda patch, rank: patch.setattr(
        platform, "machine", lambda: "aarch64" if rank else "x86_64"
    ),
    "another process space": lambda patch, rank: patch.setattr(shared_memory, "process_space", lambda: f"space {rank}"),
    "no room": lambda patch, rank: patch.setattr(os, "posix_fallocate", refuse),
    "no folder": lambda patch, rank: patch.setattr(shared_memory, "create", lambda size: None),
    "not seen by one": lambda patch, rank: patch.setattr(os, "pidfd_open", refuse) if rank else None,
}


def train(hindrance: str = "") -> tuple[bool, str]:
    """Whether memory is shared, and the digest of the weights of a small run."""
    topology = read_topology()
    arguments = ["--train.batch_size=24", "--train.max_steps=7", "--train.shards=4"]
    config = load([*BASICS, *arguments], topology.world_size).config
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        if hindrance:
            HINDRANCES[hindrance](patch, topology.rank)
        with start_runtime(config, topology) as runtime:
            trainer = open_trainer(runtime, config, Path(folder), (24 * 3, 20))
            trainer.train()
            return runtime.shared_memory is not None, weights_sha256(trainer.state.model)


@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_where_memory_cannot_be_shared_nobody_does(hindrance: str) -> None:
    shared = run_ranks(2, train)
    assert shared[0][0]
    assert run_ranks(2, train, hindrance) == [(False, shared[0][1])] * 2
    assert not left_behind()
