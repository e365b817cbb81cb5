"""PeerMonitors of several ranks in one process: who is queried, who answers, and which rank is found missing."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import NoReturn

import pytest

from mnist_dist.distributed.topology import Topology
from mnist_dist.distributed.watchdog import peer_monitor
from mnist_dist.distributed.watchdog.comm_errors import format_ranks, is_lost_peer, ranks_not_joined
from mnist_dist.distributed.watchdog.messages import PeerAddress, connect
from mnist_dist.distributed.watchdog.peer_monitor import PeerMonitor, open_peer_monitor
from mnist_dist.distributed.watchdog.status import PeerStatus, find_missing, thread_status
from mnist_dist.utils.errors import EXIT_FAILED, Stopped, TrainingError, UserError

CLOSED = RuntimeError("[somewhere.cc:1] Connection closed by peer [127.0.0.1]:1")
TIMED_OUT = RuntimeError("[somewhere.cc:2] Timed out waiting 2000ms for recv operation to complete")
TIMEOUT = 60
HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUERY_SECONDS", "NOTICE_SECONDS", "RETRY_SECONDS"):
        monkeypatch.setattr(peer_monitor, name, getattr(peer_monitor, name) / 5)


IN_GLOO = "/lib/torch/distributed/distributed_c10d.py"


def raise_in(file: str, error: BaseException) -> NoReturn:
    """Raise an error in a frame of that file."""
    space = {"error": error.with_traceback(None)}
    exec(compile("def fail():\n    raise error", file, "exec"), space)
    space["fail"]()  # type: ignore[operator]
    raise AssertionError


def raised_in(file: str, error: BaseException) -> BaseException:
    """The error, with the traceback that it has if it was raised in a frame of that file."""
    try:
        raise_in(file, error)
    except BaseException as caught:
        return caught


def topology(rank: int, world_size: int, machines: int = 1) -> Topology:
    local = world_size // machines
    return Topology(rank, world_size, rank % local, local, "127.0.0.1:29500")


@contextlib.contextmanager
def open_monitors(world_size: int) -> Iterator[list[PeerMonitor]]:
    """The monitors of all ranks in this process; this thread is the main thread of each."""
    monitors = [PeerMonitor(topology(rank, world_size), TIMEOUT) for rank in range(world_size)]
    try:
        for monitor in monitors:
            monitor.start([other.own_address for other in monitors])
        yield monitors
    finally:
        for monitor in monitors:
            monitor.close()


def received_notice(receiver: PeerMonitor, sender: PeerMonitor) -> PeerStatus | None:
    """The exit notice that one rank has of another. A query is sent after it: once that is answered, it was read."""
    sender.request(receiver.own_address, None, 5)
    return receiver.exit_notices.get(sender.topology.rank)


def send_raw(port: int, line: bytes) -> bytes:
    """The answer to a line; empty also if the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection, contextlib.suppress(OSError):
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(10_000)
    return b""


def test_strangers_get_no_answer_and_do_no_harm() -> None:
    with open_monitors(2) as (first, second):
        port, token = first.own_address.port, first.own_address.token
        query = {"rank": 1, "token": token, "exit_notice": None}
        assert b"test_strangers_get_no_answer" in send_raw(port, json.dumps(query).encode() + b"\n")
        for token in ("", "\u00e9", second.own_address.token):
            assert send_raw(port, json.dumps(query | {"token": token}).encode() + b"\n") == b""
        for line in (b"", b"\n", b"{", b"[" * 100_000 + b"\n", b"{}\n", b"[]\n", b"\xff\n", b"1" * 2_000_000 + b"\n"):
            assert send_raw(port, line) == b""
        assert first.thread.is_alive()
        assert b"test_strangers_get_no_answer" in send_raw(port, json.dumps(query).encode() + b"\n")


def test_the_socket_is_bound_to_loopback_unless_there_are_several_machines() -> None:
    for machines, address in ((1, "127.0.0.1"), (2, "0.0.0.0")):
        monitor = PeerMonitor(topology(0, 2, machines), 2)
        assert monitor.listener.getsockname()[0] == address
        assert monitor.own_address.address == "127.0.0.1"
        monitor.close()


def test_a_rank_stuck_in_the_rendezvous_after_the_timeout_reports_it_and_is_ended() -> None:
    """In a real run it is stuck in gloo, which keeps trying if a firewall drops packets; here in a lock."""
    code = (
        "import threading\n"
        "from mnist_dist.distributed.topology import Topology\n"
        "from mnist_dist.distributed.watchdog import comm_errors\n"
        "comm_errors.RENDEZVOUS_GRACE_SECONDS = 0.1\n"
        "with comm_errors.rendezvous_errors(Topology(0, 1), 0.1, bool): pass\n"
        "with comm_errors.rendezvous_errors(Topology(1, 2, address='n0:7'), 60, bool): pass\n"
        "with comm_errors.rendezvous_errors(Topology(1, 2, address='n0:7'), 0.1, bool): threading.Event().wait(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert ended.returncode == EXIT_FAILED
    message = "rank 1 of 2 could not connect to the other ranks (rendezvous at n0:7) within run.timeout=0.1 s: still "
    assert ended.stderr.startswith(f"mnist_dist: error: rank 1: {message}")
    assert ended.stderr.count("\n") == 1


def test_a_machine_that_resolves_the_rendezvous_to_loopback_is_reached_at_the_rendezvous(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every other machine is reached at its own address, also rank 0's, which under c10d may be another machine."""
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: address)
    two_machines = replace(topology(0, 2, machines=2), address="main:29500")
    first, second = (PeerAddress(rank, rank, "n", f"10.0.0.{rank + 1}", 7, "token") for rank in (0, 1))
    debian = replace(first, address="127.0.1.1")
    assert connect(debian, second, two_machines, 5) == ("main", 7)
    assert connect(debian, debian, two_machines, 5) == ("127.0.1.1", 7)
    assert connect(first, second, two_machines, 5) == ("10.0.0.1", 7)
    assert connect(second, first, two_machines, 5) == ("10.0.0.2", 7)


def test_a_stuck_rank_is_reported_with_the_stack_of_its_main_thread(capsys: pytest.CaptureFixture[str]) -> None:
    with open_monitors(2) as (first, second):
        message = first.diagnose(TIMED_OUT)
        expected = f"rank 1 on {HOST} did not join the collective within run.timeout={TIMEOUT} s, stuck in "
        assert message.startswith(expected)
        assert "\n" not in message
        stacks = capsys.readouterr().err
        assert "mnist_dist: rank 0 waited here:\n" in stacks
        here = stacks.split("mnist_dist: rank 1 is here:\n")[1]
        assert " test_a_stuck_rank_is_reported_with_the_stack_of_its_main_thread\n" in here
        exit_notice = received_notice(second, first)
        assert exit_notice is not None
        assert (exit_notice.state, exit_notice.timed_out, exit_notice.missing_ranks) == ("waiting", True, (1,))
        assert second.abort_at is not None
        assert second.abort_at < time.monotonic() + peer_monitor.ABORT_SECONDS
        second.abort_at = None  # or it would end this process


def test_a_rank_that_lost_the_same_peer_is_not_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with open_monitors(3) as (first, second, third):
        second.lost_peer_error = TIMED_OUT
        third.close()
        assert first.diagnose(CLOSED) == f"rank 2 on {HOST} exited without an error message (killed?)"
        assert "rank 1" not in capsys.readouterr().err
        assert received_notice(second, first) is not None
        assert second.diagnose(TIMED_OUT) == f"rank 2 on {HOST} exited without an error message (killed?)"


def test_a_rank_that_the_others_found_missing_says_so() -> None:
    with open_monitors(2) as (first, second):
        first.exit_notices[1] = PeerStatus("waiting", missing_ranks=(0,))
        assert first.diagnose(CLOSED) == (
            "the other ranks stopped waiting for this rank: it did not join the collective within "
            f"run.timeout={TIMEOUT} s"
        )
        exit_notice = received_notice(second, first)
        assert exit_notice is not None
        assert exit_notice.missing_ranks == ()


def test_if_all_ranks_wait_the_message_says_where_each_one_is() -> None:
    with open_monitors(2) as (first, second):
        second.lost_peer_error = TIMED_OUT
        expected = (
            "a collective failed (Timed out waiting 2000ms for recv operation to complete), but no rank is missing"
        )
        assert first.diagnose(TIMED_OUT).startswith(f"{expected}: rank 1 in ")


@pytest.mark.parametrize(
    ("error", "raised", "state"),
    [
        (CLOSED, TrainingError, "waiting"),
        (UserError("a mistake"), UserError, "failed"),
        (RuntimeError("a bug"), RuntimeError, "failed"),
        (Stopped("at step 3"), Stopped, None),
    ],
)
def test_a_rank_that_ends_by_an_error_tells_the_others(error: Exception, raised: type, state: str | None) -> None:
    with open_monitors(2) as (first, second):
        second.lost_peer_error = CLOSED
        with pytest.raises(raised), first:
            raise_in(IN_GLOO, error)
        assert not first.thread.is_alive()
        exit_notice = received_notice(second, first)
        assert (exit_notice.state if exit_notice else None) == state
        if state == "failed":
            second.lost_peer_error = None
            name = type(error).__name__
            assert second.diagnose(CLOSED) == f"rank 0 on {HOST} failed with {name} ({error})"


def test_a_single_process_opens_nothing() -> None:
    before = threading.active_count()
    with open_peer_monitor(Topology(), 2, lambda peer: pytest.fail("asked for other ranks")):
        assert threading.active_count() == before


def test_addresses_that_cannot_be_exchanged_leave_nothing_open() -> None:
    def all_gather(address: object) -> list[object]:
        raise CLOSED

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="closed"):
        open_peer_monitor(topology(0, 2), 2, all_gather)
    assert threading.active_count() == before


def wait_as_in(file: str, entered: threading.Event, leave: threading.Event) -> None:
    """Wait in a frame of that file, the innermost one of the stack."""
    done = threading.Lock()
    done.acquire()
    space = {"entered": entered, "acquire": done.acquire}
    threading.Thread(target=lambda: (leave.wait(), done.release()), daemon=True).start()
    exec(compile("def wait():\n    entered.set()\n    acquire()", file, "exec"), space)
    space["wait"]()


def fail_slowly(error: Exception, entered: threading.Event, leave: threading.Event) -> None:
    """Take long in a `finally`, as a tracker that is closed while an error is raised."""
    with contextlib.suppress(Exception):
        try:
            raise_in(IN_GLOO, error)
        finally:
            entered.set()
            leave.wait()


@pytest.mark.parametrize(
    ("action", "argument", "state"),
    [
        (wait_as_in, "/lib/torch/distributed/c10d_logger.py", "waiting"),
        (wait_as_in, "/lib/torch/autograd/graph.py", "waiting"),
        (wait_as_in, "/home/mnist_dist/distributed/runtime.py", "waiting"),
        (wait_as_in, "/home/mnist_dist/distributed/shared_memory.py", "waiting"),
        (wait_as_in, "/home/mnist_dist/training/trainer.py", "busy"),
        (fail_slowly, CLOSED, "waiting"),
        (fail_slowly, ValueError("a bug"), "busy"),
    ],
)
def test_state_of_a_thread(action: Callable[..., None], argument: object, state: str) -> None:
    entered, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=action, args=(argument, entered, leave), daemon=True)
    thread.start()
    assert entered.wait(10)
    assert thread.ident is not None
    found = thread_status(thread.ident)
    leave.set()
    thread.join(10)
    assert found.state == state
    assert any(action.__name__ in frame for frame in found.stack)


WAITING, BUSY, FAILED = PeerStatus("waiting", "closed"), PeerStatus("busy"), PeerStatus("failed", "ValueError (x)")
TIMED = PeerStatus("waiting", "timed out", timed_out=True)
SILENT, EXITED = PeerStatus("unresponsive"), PeerStatus("exited")


@pytest.mark.parametrize(
    ("own", "others", "missing"),
    [
        (TIMED, [WAITING, SILENT], [2]),
        (TIMED, [BUSY, SILENT], [1, 2]),
        (TIMED, [BUSY, EXITED], [1, 2]),
        (WAITING, [BUSY, EXITED], [2]),  # rank 1 has not come to the collective yet
        (WAITING, [BUSY, FAILED], [2]),
        (WAITING, [TIMED, BUSY, EXITED], [2, 3]),  # but rank 1 has waited for rank 2 for the whole timeout
        (WAITING, [TIMED, BUSY], [2]),
        (WAITING, [WAITING, BUSY], [2]),
        (TIMED, [TIMED, TIMED], []),
    ],
)
def test_which_ranks_are_missing(own: PeerStatus, others: list[PeerStatus], missing: list[int]) -> None:
    assert list(find_missing(dict(enumerate(others, start=1)), own)) == missing


def test_ranks_of_one_host_with_the_same_cause_are_grouped() -> None:
    with open_monitors(2) as (first, _):
        peers = [replace(first.own_address, rank=rank, hostname="ab"[rank // 4]) for rank in range(8)]
        first.peers = peers
        missing = {1: PeerStatus("exited"), 3: PeerStatus("exited"), **dict.fromkeys(range(4, 8), SILENT)}
        exited, silent = first.describe_missing(missing).split("; ")
        assert exited.startswith("ranks 1, 3 on a exited")
        assert silent.startswith("ranks 4-7 on b did not answer")


@pytest.mark.parametrize(
    ("ranks", "text"), [([1], "rank 1"), ([1, 2], "ranks 1, 2"), ([5, 1, 2, 3, 7, 8], "ranks 1-3, 5, 7, 8")]
)
def test_format_ranks(ranks: list[int], text: str) -> None:
    assert format_ranks(ranks) == text


def test_which_ranks_did_not_join_the_rendezvous() -> None:
    timed_out = RuntimeError("wait timeout after 2000ms, keys: /default_pg/0//cpu//0/2\nmore")
    keys = {"default_pg/0//cpu//0/0", "default_pg/0//cpu//0/1", "default_pg/0//cpu//0/2"}
    assert ranks_not_joined(timed_out, 5, keys.__contains__) == [2, 3, 4]
    assert ranks_not_joined(RuntimeError("timed out while trying to connect to (a, 1)"), 5, keys.__contains__) == [0]
    assert ranks_not_joined(CLOSED, 5, keys.__contains__) == []


class DistError(RuntimeError):
    """As torch's, which is the base class of others."""


class DistStoreError(DistError):
    """As torch's."""


class OwnError(RuntimeError):
    """A user's."""


@pytest.mark.parametrize(
    ("error", "file", "is_lost"),
    [
        (CLOSED, IN_GLOO, True),
        (TIMED_OUT, "/lib/torch/autograd/graph.py", True),
        (TIMED_OUT, "/home/mnist_dist/distributed/shared_memory.py", True),
        (TIMED_OUT, "/lib/torch/nn/parallel/distributed.py", True),
        (DistStoreError("x"), "/home/user/own.py", True),
        (RuntimeError("database timeout"), "/home/user/own.py", False),
        (RuntimeError("could not reset by peer review: NCCL"), "/home/mnist_dist/training/trainer.py", False),
        (RuntimeError("shape"), IN_GLOO, False),
        (OwnError("timed out"), IN_GLOO, False),
        (ValueError("timeout"), IN_GLOO, False),
        (KeyboardInterrupt(), IN_GLOO, False),
    ],
)
def test_which_errors_mean_a_lost_peer(error: BaseException, file: str, is_lost: bool) -> None:
    """A text alone does not: a user's own error may mention a timeout."""
    assert is_lost_peer(raised_in(file, error)) == is_lost
    assert asdict(PeerStatus("busy"))["stack"] == ()


def test_notices_may_come_while_they_are_read() -> None:
    """The monitor's thread adds to them: here, by the hash of the rank that is looked for."""
    with open_monitors(2) as (first, second):
        second.lost_peer_error = CLOSED

        class Rank(int):
            def __eq__(self, other: object) -> bool:
                first.exit_notices[100 + len(first.exit_notices)] = PeerStatus("failed")
                return False

            __hash__ = int.__hash__

        first.exit_notices[1] = PeerStatus("waiting", missing_ranks=(Rank(7), Rank(8)))
        assert "no rank is missing" in first.diagnose(CLOSED)
        assert len(first.exit_notices) > 1


def test_a_stuck_rank_is_ended_also_where_standard_error_is_closed() -> None:
    code = (
        "import os, threading\n"
        "from mnist_dist.distributed.topology import Topology\n"
        "from mnist_dist.distributed.watchdog import comm_errors\n"
        "comm_errors.RENDEZVOUS_GRACE_SECONDS = 0.1\n"
        "os.close(2)\n"
        "with comm_errors.rendezvous_errors(Topology(1, 2, address='n0:7'), 0.1, bool): threading.Event().wait(40)\n"
    )
    start = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], timeout=50, check=False).returncode == EXIT_FAILED
    assert time.monotonic() - start < 30
