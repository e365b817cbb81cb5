"""Who is missing when an exchange fails: every process has a thread that says where its main thread is.

The thread sleeps in a socket of its own until another process asks, so it answers while the main thread is stuck, and
rank 0 is no more needed than any other. Silence means a stopped process, a refused connection one that has ended. A
process that ends by an error tells the others first, so that they need not guess.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any

from mnist_dist.distributed.topology import Topology
from mnist_dist.distributed.watchdog.comm_errors import first_line, is_lost_peer, is_timeout, name_ranks
from mnist_dist.distributed.watchdog.messages import PeerAddress, connect, listen, receive, send
from mnist_dist.distributed.watchdog.status import (
    PeerStatus,
    describe_traceback,
    dump,
    find_missing,
    innermost,
    parse_status,
    thread_status,
)
from mnist_dist.utils.errors import EXIT_FAILED, Stopped, TrainingError

ANSWER_SECONDS = 3.0  # that a process has to answer, and to notice by itself that another one is lost
MESSAGE_SECONDS = 1.0  # that one message may take
END_SECONDS = 2.0  # between being given up by the others and being ended
SETTLE_SECONDS = 0.5  # until a farewell that was sent before a connection was refused is read
AGAIN_SECONDS = 0.2  # between two questions to the same process


def open_peer_monitor(
    topology: Topology, timeout: float, gather: Callable[[Any], list[Any]]
) -> AbstractContextManager[object]:
    """Answer roll calls from now on, and hold one where an exchange fails inside the context that this gives.

    Nothing for a single process.

    Args:
        timeout: seconds of run.timeout, for the messages.
        gather: gives every rank's value, by rank, on every process.
    """
    if topology.world_size == 1:
        return contextlib.nullcontext()
    call = PeerMonitor(topology, timeout)
    try:
        call.begin([PeerAddress(**peer) for peer in gather(asdict(call.peer))])
    except BaseException:
        call.close()
        raise
    return call


class PeerMonitor:
    """One process's part: its open socket, its thread, and what it heard from the others.

    As a context, it turns an exchange that failed into a TrainingError that names the ranks that are missing; of any
    other error the other processes are told.
    """

    def __init__(self, topology: Topology, timeout: float) -> None:
        self.topology, self.timeout = topology, timeout
        self.listener, self.peer = listen(topology)
        self.peers: list[PeerAddress] = []
        self.exit_notices: dict[int, PeerStatus] = {}
        self.lost: BaseException | None = None  # what told this process that another one is lost
        self.end_at: float | None = None  # when this process is ended, should it still be stuck
        self.main = threading.get_ident()
        self.sleeper, self.waker = socket.socketpair()
        self.thread = threading.Thread(target=self.answer_calls, name="roll call", daemon=True)

    def begin(self, peers: list[PeerAddress]) -> None:
        """Answer from now on.

        Args:
            seats: of all ranks, by rank.
        """
        self.peers = peers
        self.thread.start()

    def __enter__(self) -> PeerMonitor:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None or isinstance(error, Stopped):
                return
            if is_lost_peer(error):
                raise TrainingError(self.hold(error)) from error
            self.tell_all(PeerStatus("failed", f"{type(error).__name__} ({first_line(error)})"))
        finally:
            self.close()

    def close(self) -> None:
        """End the thread."""
        self.waker.close()
        if self.thread.ident:
            self.thread.join(MESSAGE_SECONDS)
        self.listener.close()
        self.sleeper.close()

    # The thread: answers

    def answer_calls(self) -> None:
        """Sleep until somebody calls, the runtime ends, or the others have given this process up."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            selector.register(self.sleeper, selectors.EVENT_READ)
            while True:
                left = None if self.end_at is None else self.end_at - time.monotonic()
                if left is not None and left <= 0:
                    if thread_status(self.main, self.lost).kind == "busy":
                        self.end_process()
                    self.end_at = time.monotonic() + END_SECONDS  # it is about to notice: look again
                    continue
                ready = [key.fileobj for key, _ in selector.select(left)]
                if self.sleeper in ready:
                    return
                if ready:
                    with contextlib.suppress(Exception):  # whatever a stranger may send
                        self.answer()

    def answer(self) -> None:
        """One caller: it asks where this process is, or says why it ends."""
        connection, _ = self.listener.accept()
        with connection:
            connection.settimeout(MESSAGE_SECONDS)
            message = receive(connection)
            if not secrets.compare_digest(str(message["token"]), self.peer.token):
                return
            if message["farewell"] is None:
                send(connection, asdict(thread_status(self.main, self.lost)))
                return
            exit_notice = self.exit_notices[int(message["rank"])] = parse_status(message["farewell"])
            # The run is over for all. A process that was not waited for in vain yet has the time to notice by itself.
            left = END_SECONDS if self.topology.rank in exit_notice.missing_ranks else self.timeout
            self.end_at = min(time.monotonic() + left, self.end_at or math.inf)

    def end_process(self) -> None:
        """End this process, whose main thread is stuck and without which the others have ended."""
        # Where even standard error is stuck, as behind a reader that has stopped, there is no last word.
        last = threading.Timer(MESSAGE_SECONDS, os._exit, [EXIT_FAILED])
        last.daemon = True
        last.start()
        stack = thread_status(self.main, self.lost).stack
        error = (
            f"rank {self.topology.rank}: the others ended without this process, which is stuck in {innermost(stack)}"
        )
        said = f"{dump(f'rank {self.topology.rank} is stuck here', stack)}mnist_dist: error: {error}\n"
        os.write(2, said.encode())
        os._exit(EXIT_FAILED)

    # The main thread: a roll call, after an exchange failed

    def hold(self, error: BaseException) -> str:
        """Ask every other rank where it is, write the stacks to standard error, and tell all who is missing.

        Gives one line that names them. Takes at most about ANSWER_SECONDS.
        """
        self.lost = error
        here = PeerStatus("waits", first_line(error), tuple(describe_traceback(error)), is_timeout(error))
        statuses = self.ask_all()
        missing = find_missing(statuses, here)
        self.tell_all(replace(here, missing_ranks=tuple(missing)))
        if any(status.kind != "failed" for status in missing.values()):
            stacks = dump(f"rank {self.topology.rank} waited here", here.stack)
            for rank, status in missing.items():
                stacks += dump(f"rank {rank} is here", status.stack) if status.stack else ""
            print(stacks, end="", file=sys.stderr, flush=True)
        if missing:
            return self.describe_missing(missing)
        if any(self.topology.rank in exit_notice.missing_ranks for exit_notice in self.exit_notices.values()):
            return f"the others gave this process up: it did not take part within run.timeout={self.timeout:g} s"
        places = "; ".join(
            f"rank {rank} in {innermost(other.stack)}" for rank, other in statuses.items() if other.stack
        )
        return f"an exchange failed ({first_line(error)}), although no rank is missing{': ' * bool(places)}{places}"

    def describe_missing(self, missing: dict[int, PeerStatus]) -> str:
        """One line about the missing ranks; those of one machine that have the same fate share their words."""
        within = f"within run.timeout={self.timeout:g} s"
        groups: dict[tuple[str, str], list[int]] = {}
        for rank, status in missing.items():
            words = {
                "silent": f"did not answer {within} (stopped, or cannot be reached)",
                "ended": "ended without a word (killed?)",
                "failed": f"ended by {status.text}",
                "busy": f"did not take part {within}, but answers: stuck in {innermost(status.stack)}",
            }[status.kind]
            groups.setdefault((self.peers[rank].host, words), []).append(rank)
        return "; ".join(f"{name_ranks(ranks)} on {host} {words}" for (host, words), ranks in groups.items())

    def ask_all(self) -> dict[int, PeerStatus]:
        """Every other rank's standing, by rank: the last one that it gave."""
        statuses: dict[int, PeerStatus] = {}
        deadline = time.monotonic() + ANSWER_SECONDS
        self.with_each(lambda peer: statuses.update({peer.rank: self.ask(peer, deadline)}), ANSWER_SECONDS)
        others = (peer.rank for peer in self.peers if peer.rank != self.topology.rank)
        return {rank: self.exit_notices.get(rank) or statuses.get(rank) or PeerStatus("silent") for rank in others}

    def ask(self, peer: PeerAddress, deadline: float) -> PeerStatus:
        """Ask one rank until it waits too, has failed, or the time is over."""
        status = PeerStatus("silent")
        while (left := deadline - time.monotonic()) > 0:
            try:
                status = parse_status(self.call(peer, None, left))
            except TimeoutError:
                return status
            except ConnectionError:  # refused or reset
                if status.kind == "ended":
                    return status
                status = PeerStatus("ended")
                time.sleep(min(SETTLE_SECONDS, left))
                continue
            except OSError:
                status = PeerStatus("silent")
            if status.kind == "waits":
                return status
            time.sleep(min(AGAIN_SECONDS, left))
        return status

    def tell_all(self, exit_notice: PeerStatus) -> None:
        """Tell every other rank why this process ends."""

        def tell(peer: PeerAddress) -> None:
            with contextlib.suppress(OSError):
                self.call(peer, exit_notice, MESSAGE_SECONDS)

        self.with_each(tell, MESSAGE_SECONDS)

    def with_each(self, action: Callable[[PeerAddress], None], seconds: float) -> None:
        """Do something with every other rank at once, for so long at most."""
        others = [peer for peer in self.peers if peer.rank != self.topology.rank]
        threads = [threading.Thread(target=action, args=(peer,), daemon=True) for peer in others]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + seconds + MESSAGE_SECONDS / 2
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))

    def call(self, peer: PeerAddress, exit_notice: PeerStatus | None, seconds: float) -> Any:
        """Send one message; gives the answer to a question.

        Raises:
            OSError: no connection, no answer in time (TimeoutError), or not a whole one.
        """
        with connect(peer, self.peer, self.topology, seconds) as connection:
            said = None if exit_notice is None else asdict(exit_notice)
            send(connection, {"token": peer.token, "rank": self.topology.rank, "farewell": said})
            return receive(connection) if exit_notice is None else None
