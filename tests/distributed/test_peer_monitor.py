"""Roll calls among processes that are only played: who is asked, who answers, and who is blamed."""

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

import pytest

from mnist_dist.distributed.topology import Topology
from mnist_dist.distributed.watchdog import peer_monitor as peer_monitor
from mnist_dist.distributed.watchdog.comm_errors import absent_ranks, is_lost_peer, name_ranks
from mnist_dist.distributed.watchdog.messages import PeerAddress, connect
from mnist_dist.distributed.watchdog.peer_monitor import PeerMonitor, open_peer_monitor
from mnist_dist.distributed.watchdog.status import PeerStatus, find_missing, thread_status
from mnist_dist.utils.errors import EXIT_FAILED, Stopped, TrainingError, UserError

CLOSED = RuntimeError("[somewhere.cc:1] Connection closed by peer [127.0.0.1]:1")
TIMED_OUT = RuntimeError("[somewhere.cc:2] Timed out waiting 2000ms for recv operation to complete")
TIMEOUT = 60
HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANSWER_SECONDS", "SETTLE_SECONDS", "AGAIN_SECONDS"):
        monkeypatch.setattr(peer_monitor, name, getattr(peer_monitor, name) / 5)


def topology(rank: int, world_size: int, machines: int = 1) -> Topology:
    local = world_size // machines
    return Topology(rank, world_size, rank % local, local, "127.0.0.1:29500")


@contextlib.contextmanager
def calls(world_size: int) -> Iterator[list[PeerMonitor]]:
    """All ranks of a run in this process; this thread is the main thread of each."""
    opened = [PeerMonitor(topology(rank, world_size), TIMEOUT) for rank in range(world_size)]
    try:
        for call in opened:
            call.begin([other.peer for other in opened])
        yield opened
    finally:
        for call in opened:
            call.close()


def heard(by: PeerMonitor, source: PeerMonitor) -> PeerStatus | None:
    """The farewell of one that another one has: a question comes after it, so it is read once that is answered."""
    source.call(by.peer, None, 5)
    return by.exit_notices.get(source.topology.rank)


def ask_raw(port: int, line: bytes) -> bytes:
    """What comes back for a line; nothing also where the connection is cut."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection, contextlib.suppress(OSError):
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(10_000)
    return b""


def test_strangers_are_not_answered_and_do_no_harm() -> None:
    with calls(2) as (first, second):
        port, token = first.peer.port, first.peer.token
        question = {"rank": 1, "token": token, "farewell": None}
        assert b"test_strangers" in ask_raw(port, json.dumps(question).encode() + b"\n")
        for token in ("", "\u00e9", second.peer.token):
            assert ask_raw(port, json.dumps(question | {"token": token}).encode() + b"\n") == b""
        for line in (b"", b"\n", b"{", b"[" * 100_000 + b"\n", b"{}\n", b"[]\n", b"\xff\n", b"1" * 2_000_000 + b"\n"):
            assert ask_raw(port, line) == b""
        assert first.thread.is_alive()
        assert b"test_strangers" in ask_raw(port, json.dumps(question).encode() + b"\n")


def test_who_listens_is_seen_from_this_machine_only_unless_there_are_more() -> None:
    for machines, address in ((1, "127.0.0.1"), (2, "0.0.0.0")):
        call = PeerMonitor(topology(0, 2, machines), 2)
        assert call.listener.getsockname()[0] == address
        assert call.peer.address == "127.0.0.1"
        call.close()


def test_who_still_tries_to_meet_the_others_after_the_timeout_says_so_and_is_ended() -> None:
    """Stuck in gloo, which tries again and again where a firewall drops packets; here in a lock."""
    code = (
        "import threading\n"
        "from mnist_dist.distributed.topology import Topology\n"
        "from mnist_dist.distributed.watchdog import comm_errors\n"
        "comm_errors.STUCK_SECONDS = 0.1\n"
        "with comm_errors.rendezvous_errors(Topology(0, 1), 0.1, bool): pass\n"
        "with comm_errors.rendezvous_errors(Topology(1, 2, address='n0:7'), 60, bool): pass\n"
        "with comm_errors.rendezvous_errors(Topology(1, 2, address='n0:7'), 0.1, bool): threading.Event().wait(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert ended.returncode == EXIT_FAILED
    assert ended.stderr.startswith("mnist_dist: error: rank 1: rank 1 of 2 could not meet the others at n0:7 within ")
    assert ended.stderr.count("\n") == 1


def test_a_machine_that_takes_the_main_address_for_loopback_is_reached_by_the_main_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And every other one by its own, also that of rank 0, which under c10d may be elsewhere."""
    monkeypatch.setattr(socket, "create_connection", lambda place, timeout: place)
    two = replace(topology(0, 2, machines=2), address="main:29500")
    first, second = (PeerAddress(rank, rank, "n", f"10.0.0.{rank + 1}", 7, "token") for rank in (0, 1))
    debian = replace(first, address="127.0.1.1")
    assert connect(debian, second, two, 5) == ("main", 7)
    assert connect(debian, debian, two, 5) == ("127.0.1.1", 7)
    assert connect(first, second, two, 5) == ("10.0.0.1", 7)
    assert connect(second, first, two, 5) == ("10.0.0.2", 7)


def test_a_rank_is_stuck_where_its_main_thread_is(capsys: pytest.CaptureFixture[str]) -> None:
    with calls(2) as (first, second):
        said = first.hold(TIMED_OUT)
        assert said.startswith(
            f"rank 1 on {HOST} did not take part within run.timeout={TIMEOUT} s, but answers: stuck in "
        )
        assert "\n" not in said
        stacks = capsys.readouterr().err
        assert "mnist_dist: rank 0 waited here:\n" in stacks
        here = stacks.split("mnist_dist: rank 1 is here:\n")[1]
        assert " test_a_rank_is_stuck_where_its_main_thread_is\n" in here
        exit_notice = heard(second, first)
        assert exit_notice is not None
        assert (exit_notice.kind, exit_notice.timed_out, exit_notice.missing_ranks) == ("waits", True, (1,))
        assert second.end_at is not None
        assert second.end_at < time.monotonic() + peer_monitor.END_SECONDS
        second.end_at = None  # or this process would end


def test_a_rank_that_has_lost_one_too_is_not_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with calls(3) as (first, second, third):
        second.lost = TIMED_OUT
        third.close()
        assert first.hold(CLOSED) == f"rank 2 on {HOST} ended without a word (killed?)"
        assert "rank 1" not in capsys.readouterr().err
        assert heard(second, first) is not None
        assert second.hold(TIMED_OUT) == f"rank 2 on {HOST} ended without a word (killed?)"


def test_one_that_the_others_gave_up_says_so() -> None:
    with calls(2) as (first, second):
        first.exit_notices[1] = PeerStatus("waits", missing_ranks=(0,))
        assert first.hold(CLOSED) == (
            f"the others gave this process up: it did not take part within run.timeout={TIMEOUT} s"
        )
        exit_notice = heard(second, first)
        assert exit_notice is not None
        assert exit_notice.missing_ranks == ()


def test_where_all_wait_each_place_is_named() -> None:
    with calls(2) as (first, second):
        second.lost = TIMED_OUT
        said = first.hold(TIMED_OUT)
        assert said.startswith(
            "an exchange failed (Timed out waiting 2000ms for recv operation to complete), although "
        )
        assert "no rank is missing: rank 1 in " in said


@pytest.mark.parametrize(
    ("error", "raised", "told"),
    [
        (CLOSED, TrainingError, "waits"),
        (UserError("a mistake"), UserError, "failed"),
        (RuntimeError("a bug"), RuntimeError, "failed"),
        (Stopped("at step 3"), Stopped, None),
    ],
)
def test_who_leaves_by_an_error_tells_the_others(error: Exception, raised: type, told: str | None) -> None:
    with calls(2) as (first, second):
        second.lost = CLOSED
        with pytest.raises(raised), first:
            raise error
        assert not first.thread.is_alive()
        exit_notice = heard(second, first)
        assert (exit_notice.kind if exit_notice else None) == told
        if told == "failed":
            second.lost = None
            name = type(error).__name__
            assert second.hold(CLOSED) == f"rank 0 on {HOST} ended by {name} ({error})"


def test_one_process_opens_nothing() -> None:
    before = threading.active_count()
    with open_peer_monitor(Topology(), 2, lambda peer: pytest.fail("asked for others")):
        assert threading.active_count() == before


def test_seats_that_cannot_be_exchanged_leave_nothing_open() -> None:
    def gather(peer: object) -> list[object]:
        raise CLOSED

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="closed"):
        open_peer_monitor(topology(0, 2), 2, gather)
    assert threading.active_count() == before


def wait_as_in(file: str, entered: threading.Event, leave: threading.Event) -> None:
    """Wait in a frame of that file, which has no other frame below it."""
    done = threading.Lock()
    done.acquire()
    space = {"entered": entered, "acquire": done.acquire}
    threading.Thread(target=lambda: (leave.wait(), done.release()), daemon=True).start()
    exec(compile("def wait():\n    entered.set()\n    acquire()", file, "exec"), space)
    space["wait"]()


def fail_slowly(error: Exception, entered: threading.Event, leave: threading.Event) -> None:
    """Do something lengthy on an error's way, as a tracker that is finished."""
    with contextlib.suppress(Exception):
        try:
            raise error
        finally:
            entered.set()
            leave.wait()


@pytest.mark.parametrize(
    ("action", "argument", "kind"),
    [
        (wait_as_in, "/lib/torch/distributed/c10d_logger.py", "waits"),
        (wait_as_in, "/lib/torch/autograd/graph.py", "waits"),
        (wait_as_in, "/home/mnist_dist/distributed/runtime.py", "waits"),
        (wait_as_in, "/home/mnist_dist/distributed/shared_memory.py", "waits"),
        (wait_as_in, "/home/mnist_dist/training/trainer.py", "busy"),
        (fail_slowly, CLOSED, "waits"),
        (fail_slowly, ValueError("a bug"), "busy"),
    ],
)
def test_what_a_thread_is_doing(action: Callable[..., None], argument: object, kind: str) -> None:
    entered, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=action, args=(argument, entered, leave), daemon=True)
    thread.start()
    assert entered.wait(10)
    assert thread.ident is not None
    found = thread_status(thread.ident)
    leave.set()
    thread.join(10)
    assert found.kind == kind
    assert any(action.__name__ in frame for frame in found.stack)


WAITS, LATE, BUSY = PeerStatus("waits", "closed"), PeerStatus("waits", "timed out", timed_out=True), PeerStatus("busy")
SILENT, ENDED, FAILED = PeerStatus("silent"), PeerStatus("ended"), PeerStatus("failed", "ValueError (x)")


@pytest.mark.parametrize(
    ("here", "others", "missing"),
    [
        (LATE, [WAITS, SILENT], [2]),
        (LATE, [BUSY, SILENT], [1, 2]),
        (LATE, [BUSY, ENDED], [1, 2]),
        (WAITS, [BUSY, ENDED], [2]),  # rank 1 has not come to the exchange yet
        (WAITS, [BUSY, FAILED], [2]),
        (WAITS, [LATE, BUSY, ENDED], [2, 3]),  # but rank 1 has waited for rank 2 all the time
        (WAITS, [LATE, BUSY], [2]),
        (WAITS, [WAITS, BUSY], [2]),
        (LATE, [LATE, LATE], []),
    ],
)
def test_who_is_missing(here: PeerStatus, others: list[PeerStatus], missing: list[int]) -> None:
    assert list(find_missing(dict(enumerate(others, start=1)), here)) == missing


def test_ranks_with_the_same_fate_share_their_words() -> None:
    with calls(2) as (first, _):
        peers = [replace(first.peer, rank=rank, host="ab"[rank // 4]) for rank in range(8)]
        first.peers = peers
        missing = {1: PeerStatus("ended"), 3: PeerStatus("ended"), **dict.fromkeys(range(4, 8), SILENT)}
        ended, silent = first.describe_missing(missing).split("; ")
        assert ended.startswith("ranks 1, 3 on a ended")
        assert silent.startswith("ranks 4-7 on b did not answer")


@pytest.mark.parametrize(
    ("ranks", "words"), [([1], "rank 1"), ([1, 2], "ranks 1, 2"), ([5, 1, 2, 3, 7, 8], "ranks 1-3, 5, 7, 8")]
)
def test_names(ranks: list[int], words: str) -> None:
    assert name_ranks(ranks) == words


def test_who_did_not_come_to_the_meeting() -> None:
    waited = RuntimeError("wait timeout after 2000ms, keys: /default_pg/0//cpu//0/2\nmore")
    there = {"default_pg/0//cpu//0/0", "default_pg/0//cpu//0/1", "default_pg/0//cpu//0/2"}
    assert absent_ranks(waited, 5, there.__contains__) == [2, 3, 4]
    assert absent_ranks(RuntimeError("timed out while trying to connect to (a, 1)"), 5, there.__contains__) == [0]
    assert absent_ranks(CLOSED, 5, there.__contains__) == []


def test_which_errors_tell_of_a_lost_process() -> None:
    class DistError(RuntimeError):
        """As torch's, of which its other ones are made."""

    class DistStoreError(DistError):
        pass

    assert all(is_lost_peer(error) for error in (CLOSED, TIMED_OUT, DistStoreError("x")))
    assert not any(is_lost_peer(error) for error in (RuntimeError("shape"), ValueError("timeout"), KeyboardInterrupt()))
    assert asdict(PeerStatus("busy"))["stack"] == ()
