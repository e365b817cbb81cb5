"""Find the rank that a failed collective is missing: every process has a thread that reports where its main thread is.

The error then says which rank is missing, on which host, and whether it exited, failed, was stopped, or is stuck and
where; processes that are stuck are ended. No part of torch does this, on gloo and NCCL alike: the NCCL watchdog ends a
process but names no other rank, Flight Recorder writes dumps to be analysed afterwards, `monitored_barrier` is one more
collective before each collective (gloo only), and torchrun sees the exits on its own machine only.

The thread sleeps in a socket of its own until a peer connects, so it answers while the main thread is stuck, and rank 0
is not needed. Nothing is sent while the run is healthy. A process that ends by an error tells the others first.
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
from mnist_dist.distributed.watchdog.comm_errors import first_line, format_ranks, is_lost_peer, is_timeout
from mnist_dist.distributed.watchdog.messages import PeerAddress, connect, listen, receive, send
from mnist_dist.distributed.watchdog.status import (
    PeerStatus,
    extract_traceback,
    find_missing,
    format_stack,
    innermost_frames,
    parse_status,
    thread_status,
)
from mnist_dist.utils.errors import EXIT_FAILED, Stopped, TrainingError

QUERY_SECONDS = 3.0
"""For the other ranks to answer, and to notice by themselves that a rank is lost."""
MESSAGE_SECONDS = 1.0
"""For one message."""
ABORT_SECONDS = 2.0
"""From the notice that the others found this rank missing until it is ended, if it is still stuck."""
NOTICE_SECONDS = 0.5
"""After a refused connection, for an exit notice that was sent before it to be read."""
RETRY_SECONDS = 0.2
"""Between two queries of one rank."""


def open_peer_monitor(
    topology: Topology, timeout: float, all_gather: Callable[[Any], list[Any]]
) -> AbstractContextManager[object]:
    """Start answering the other ranks; gives a context that diagnoses a collective that fails inside it.

    Does nothing for a single process.

    Args:
        timeout: run.timeout in seconds, for the messages.
        all_gather: gives every rank's value, by rank, on every rank.
    """
    if topology.world_size == 1:
        return contextlib.nullcontext()
    monitor = PeerMonitor(topology, timeout)
    try:
        monitor.start([PeerAddress(**peer) for peer in all_gather(asdict(monitor.own_address))])
    except BaseException:
        monitor.close()
        raise
    return monitor


class PeerMonitor:
    """One process's listening socket, the thread that serves it, and the exit notices of other ranks.

    As a context, it turns the error of a failed collective into a TrainingError that names the missing ranks. Any other
    error is sent to the other ranks and raised as it is.
    """

    def __init__(self, topology: Topology, timeout: float) -> None:
        self.topology, self.timeout = topology, timeout
        self.listener, self.own_address = listen(topology)
        self.peers: list[PeerAddress] = []  # all ranks, by rank
        self.exit_notices: dict[int, PeerStatus] = {}
        self.lost_peer_error: BaseException | None = None  # by which this process noticed that a peer is lost
        self.abort_at: float | None = None  # time.monotonic() at which this process is ended if it is stuck
        self.main_thread = threading.get_ident()
        self.wake_reader, self.wake_writer = socket.socketpair()
        self.thread = threading.Thread(target=self.serve, name="peer monitor", daemon=True)

    def start(self, peers: list[PeerAddress]) -> None:
        """Start the thread.

        Args:
            peers: the addresses of all ranks, by rank.
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
                raise TrainingError(self.diagnose(error)) from error
            self.send_exit_notice(PeerStatus("failed", f"{type(error).__name__} ({first_line(error)})"))
        finally:
            self.close()

    def close(self) -> None:
        """End the thread and close the sockets."""
        self.wake_writer.close()
        if self.thread.ident:
            self.thread.join(MESSAGE_SECONDS)
        self.listener.close()
        self.wake_reader.close()

    # In the thread: answer the other ranks

    def serve(self) -> None:
        """Answer requests until the monitor is closed; end the process if it is stuck at `abort_at`."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            selector.register(self.wake_reader, selectors.EVENT_READ)
            while True:
                timeout = None if self.abort_at is None else self.abort_at - time.monotonic()
                if timeout is not None and timeout <= 0:
                    if thread_status(self.main_thread, self.lost_peer_error).state == "busy":
                        self.abort()
                    self.abort_at = time.monotonic() + ABORT_SECONDS  # it is about to notice the loss: look again
                    continue
                ready = [key.fileobj for key, _ in selector.select(timeout)]
                if self.wake_reader in ready:
                    return
                if ready:
                    with contextlib.suppress(Exception):  # anybody may connect and send anything
                        self.handle_request()

    def handle_request(self) -> None:
        """Answer one connection: a query for this rank's status, or a peer's exit notice."""
        connection, _ = self.listener.accept()
        with connection:
            connection.settimeout(MESSAGE_SECONDS)
            message = receive(connection)
            if not secrets.compare_digest(str(message["token"]), self.own_address.token):
                return
            if message["exit_notice"] is None:
                send(connection, asdict(thread_status(self.main_thread, self.lost_peer_error)))
                return
            exit_notice = self.exit_notices[int(message["rank"])] = parse_status(message["exit_notice"])
            # The run is over for every rank. If no rank has timed out waiting for this one, it gets the whole
            # run.timeout to notice the loss by itself.
            seconds = ABORT_SECONDS if self.topology.rank in exit_notice.missing_ranks else self.timeout
            self.abort_at = min(time.monotonic() + seconds, self.abort_at or math.inf)

    def abort(self) -> None:
        """End this process, whose main thread is stuck: write its stack and one line to standard error."""
        # Standard error itself may block, if its reader has stopped: then the process ends without the message.
        forced_exit = threading.Timer(MESSAGE_SECONDS, os._exit, [EXIT_FAILED])
        forced_exit.daemon = True
        forced_exit.start()
        rank = self.topology.rank
        stack = thread_status(self.main_thread, self.lost_peer_error).stack
        error = f"rank {rank}: the other ranks stopped waiting for this rank, stuck in {innermost_frames(stack)}"
        with contextlib.suppress(OSError):
            os.write(2, f"{format_stack(f'rank {rank} is stuck here', stack)}mnist_dist: error: {error}\n".encode())
        os._exit(EXIT_FAILED)

    # In the main thread: ask the other ranks, after a collective failed

    def diagnose(self, error: BaseException) -> str:
        """Find the missing ranks: query every rank, write the stacks to standard error, tell all who is missing.

        Takes about QUERY_SECONDS at most.

        Returns:
            one line that names the missing ranks.
        """
        self.lost_peer_error = error
        own = PeerStatus("waiting", first_line(error), tuple(extract_traceback(error)), is_timeout(error))
        statuses = self.query_all()
        missing = find_missing(statuses, own)
        self.send_exit_notice(replace(own, missing_ranks=tuple(missing)))
        if any(status.state != "failed" for status in missing.values()):
            stacks = format_stack(f"rank {self.topology.rank} waited here", own.stack)
            for rank, status in missing.items():
                stacks += format_stack(f"rank {rank} is here", status.stack) if status.stack else ""
            print(stacks, end="", file=sys.stderr, flush=True)
        if missing:
            return self.describe_missing(missing)
        notices = list(self.exit_notices.values())  # a copy: the monitor's thread adds to it
        if any(self.topology.rank in exit_notice.missing_ranks for exit_notice in notices):
            return (
                "the other ranks stopped waiting for this rank: it did not join the collective within "
                f"run.timeout={self.timeout:g} s"
            )
        places = "; ".join(
            f"rank {rank} in {innermost_frames(other.stack)}" for rank, other in statuses.items() if other.stack
        )
        return f"a collective failed ({first_line(error)}), but no rank is missing{': ' * bool(places)}{places}"

    def describe_missing(self, missing: dict[int, PeerStatus]) -> str:
        """One line about the missing ranks, grouped by host and by what happened to them."""
        within = f"within run.timeout={self.timeout:g} s"
        groups: dict[tuple[str, str], list[int]] = {}
        for rank, status in missing.items():
            cause = {
                "unresponsive": f"did not answer {within} (stopped or unreachable)",
                "exited": "exited without an error message (killed?)",
                "failed": f"failed with {status.error}",
                "busy": f"did not join the collective {within}, stuck in {innermost_frames(status.stack)}",
            }[status.state]
            groups.setdefault((self.peers[rank].hostname, cause), []).append(rank)
        return "; ".join(f"{format_ranks(ranks)} on {host} {cause}" for (host, cause), ranks in groups.items())

    def query_all(self) -> dict[int, PeerStatus]:
        """Status of every other rank, by rank: its exit notice if it sent one, else its last answer."""
        statuses: dict[int, PeerStatus] = {}
        deadline = time.monotonic() + QUERY_SECONDS
        self.for_each_peer(lambda peer: statuses.update({peer.rank: self.query(peer, deadline)}), QUERY_SECONDS)
        others = (peer.rank for peer in self.peers if peer.rank != self.topology.rank)
        return {
            rank: self.exit_notices.get(rank) or statuses.get(rank) or PeerStatus("unresponsive") for rank in others
        }

    def query(self, peer: PeerAddress, deadline: float) -> PeerStatus:
        """Query one rank until it is waiting too, has exited, or the deadline (time.monotonic()) has passed."""
        status = PeerStatus("unresponsive")
        while (left := deadline - time.monotonic()) > 0:
            try:
                status = parse_status(self.request(peer, None, left))
            except TimeoutError:
                return status
            except ConnectionError:  # refused or reset
                if status.state == "exited":
                    return status
                status = PeerStatus("exited")
                time.sleep(min(NOTICE_SECONDS, left))
                continue
            except OSError:
                status = PeerStatus("unresponsive")
            if status.state == "waiting":
                return status
            time.sleep(min(RETRY_SECONDS, left))
        return status

    def send_exit_notice(self, exit_notice: PeerStatus) -> None:
        """Tell every other rank why this process ends."""

        def notify(peer: PeerAddress) -> None:
            with contextlib.suppress(OSError):
                self.request(peer, exit_notice, MESSAGE_SECONDS)

        self.for_each_peer(notify, MESSAGE_SECONDS)

    def for_each_peer(self, action: Callable[[PeerAddress], None], seconds: float) -> None:
        """Call a function for every other rank at once, each in a thread, and wait about `seconds` for them."""
        others = [peer for peer in self.peers if peer.rank != self.topology.rank]
        threads = [threading.Thread(target=action, args=(peer,), daemon=True) for peer in others]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + seconds + MESSAGE_SECONDS / 2
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))

    def request(self, peer: PeerAddress, exit_notice: PeerStatus | None, timeout: float) -> Any:
        """Send a rank an exit notice, or without one query its status; gives the answer to a query.

        Raises:
            OSError: no connection, no answer within `timeout` seconds (TimeoutError), or an incomplete one.
        """
        with connect(peer, self.own_address, self.topology, timeout) as connection:
            notice = None if exit_notice is None else asdict(exit_notice)
            send(connection, {"token": peer.token, "rank": self.topology.rank, "exit_notice": notice})
            return receive(connection) if exit_notice is None else None
