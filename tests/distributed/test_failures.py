"""Ranks that never join, stop answering, or die: the others end in time, with one line that says why."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest
from harness import run_ranks, try_ranks
from programs import free_port
from small_training import BASICS, open_trainer

from mnist_dist.config.loader import load
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import read_topology
from mnist_dist.utils.errors import TrainingError, UserError

TIMEOUT = 2


def join() -> None:
    with start_runtime(load([*BASICS, f"--run.timeout={TIMEOUT}"]).config, read_topology()):
        raise AssertionError("joined without the others")


@pytest.mark.parametrize(
    ("world_size", "absent", "named"), [(2, [1], "rank 1"), (3, [0], "rank 0"), (4, [1, 2], "ranks 1, 2")]
)
def test_ranks_that_never_join_are_named_within_the_timeout(world_size: int, absent: list[int], named: str) -> None:
    start = time.monotonic()
    outcomes = try_ranks(world_size, join, absent=absent)
    assert TIMEOUT <= time.monotonic() - start < TIMEOUT + 5
    for rank, outcome in enumerate(outcomes):
        if rank not in absent:
            assert isinstance(outcome.error, TrainingError)
            expected = f"rank {rank} of {world_size} could not connect to {named} (rendezvous at 127.0.0.1:"
            assert str(outcome.error).startswith(expected)
            assert f"within run.timeout={TIMEOUT} s" in str(outcome.error)
            assert "\n" not in str(outcome.error)


def join_as(ranks: list[str], port: str) -> None:
    """Join as the rank in the list, by a store that rank 0 serves."""
    os.environ.update(RANK=ranks[int(os.environ["RANK"])], MASTER_PORT=port)
    del os.environ["TORCHELASTIC_USE_AGENT_STORE"], os.environ["LOCAL_RANK"]
    join()


def test_a_rank_that_two_processes_have_is_refused() -> None:
    first, *others = try_ranks(3, join_as, ["0", "1", "1"], str(free_port()))
    (refused,) = [outcome for outcome in others if isinstance(outcome.error, UserError)]
    (other,) = [outcome for outcome in others if outcome is not refused]
    host = re.escape(socket.gethostname())
    expected = rf"two processes have rank 1 of 3, process \d+ on {host} and process \d+ on {host}: give each process .*"
    assert re.fullmatch(expected, str(refused.error))
    for outcome in (first, other):
        assert isinstance(outcome.error, TrainingError)
        assert "could not connect to rank 2 (rendezvous at 127.0.0.1:" in str(outcome.error)


def test_two_processes_of_rank_0_on_one_machine() -> None:
    outcomes = try_ranks(2, join_as, ["0", "0"], str(free_port()))
    (refused,) = [outcome for outcome in outcomes if isinstance(outcome.error, UserError)]
    assert re.match(r"rank 0 of 2 cannot listen at 127.0.0.1:\d+, which is in use: by another run", str(refused.error))


def train_until(folder: Path, event: str, odd_rank: int, timeout: float) -> None:
    """Train; something happens to one rank at step 3."""
    topology = read_topology()
    config = load([*BASICS, "--train.batch_size=24", f"--run.timeout={timeout}"], topology.world_size).config

    def at_step(step: int) -> None:
        if step == 3 and topology.rank == odd_rank:
            if event == "dies":
                os._exit(9)
            raise UserError("something is wrong here")

    with start_runtime(config, topology) as runtime:
        open_trainer(runtime, config, folder, (24 * 9, 30), at_step).train()


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("event", ["dies", "raises"])
def test_when_a_rank_ends_the_others_end_at_once(event: str, world_size: int, tmp_path: Path) -> None:
    start = time.monotonic()
    outcomes = try_ranks(world_size, train_until, tmp_path, event, 1, 600)
    assert time.monotonic() - start < 15
    assert outcomes[1].exit_code == 9 if event == "dies" else isinstance(outcomes[1].error, UserError)
    for outcome in outcomes[:1] + outcomes[2:]:
        assert isinstance(outcome.error, TrainingError), outcome
        cause = "exited without an error message (killed?)"
        if event == "raises":
            cause = "failed with UserError (something is wrong here)"
        assert str(outcome.error) == f"rank 1 on {socket.gethostname()} {cause}"


def fail_with_an_exchange_in_flight(folder: Path) -> float:
    """Rank 1 fails after it has started an exchange of stop flags, which rank 0 joins only once rank 1 has left.

    Returns:
        Seconds from the error until rank 1 has left, its process group collected.
    """

    def fail() -> float:
        with start_runtime(load([*BASICS, "--run.timeout=10"]).config, read_topology()) as runtime:
            if runtime.rank == 0:
                deadline = time.monotonic() + 20
                while not (folder / "left").exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                return 0.0
            runtime.should_stop()
            raise UserError("something is wrong here")

    start = time.monotonic()
    with contextlib.suppress(UserError):
        return fail()
    (folder / "left").touch()
    return time.monotonic() - start


def test_a_rank_that_fails_ends_at_once_with_an_exchange_in_flight(tmp_path: Path) -> None:
    _, seconds = run_ranks(2, fail_with_an_exchange_in_flight, tmp_path)
    assert seconds < 5


def gather_without_rank_1() -> float:
    """Seconds that rank 0 waits in an all_gather_object, on the control group, that rank 1 does not join."""
    with start_runtime(load([*BASICS, f"--run.timeout={TIMEOUT}"]).config, read_topology()) as runtime:
        start = time.monotonic()
        if runtime.rank == 0:
            with pytest.raises(RuntimeError):
                runtime.all_gather_object("here")
            return time.monotonic() - start
        threading.Event().wait(2 * TIMEOUT)
        return 0.0


def test_the_timeout_holds_on_the_control_group_too() -> None:
    waited, _ = run_ranks(2, gather_without_rank_1)
    assert TIMEOUT <= waited < 2 * TIMEOUT


def start_as_one_of_two() -> None:
    """The launcher started two processes, but accelerate is made to see one."""
    os.environ["WORLD_SIZE"] = "1"
    with start_runtime(load(BASICS).config, read_topology({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "here"})):
        raise AssertionError("would have trained alone")


def test_processes_that_would_train_independently_are_refused() -> None:
    (outcome,) = try_ranks(1, start_as_one_of_two)
    assert isinstance(outcome.error, UserError)
    assert "the launcher started 2 processes, but accelerate sees 1" in str(outcome.error)


def start_twice() -> list[str]:
    """Two runs at different precisions, as in a notebook."""
    precisions = []
    for precision in ("no", "bf16"):
        with start_runtime(load([*BASICS, f"--train.precision={precision}"]).config, read_topology()) as runtime:
            precisions.append(runtime.precision)
    return precisions


def test_a_process_may_train_twice() -> None:
    assert run_ranks(1, start_twice) == [["fp32", "bf16"]]
