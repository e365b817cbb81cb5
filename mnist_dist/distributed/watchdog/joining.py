"""While this rank waits for the others to join: say for whom it waits, and end at once on a signal.

The main thread is in torch's native code then, where Python runs no signal handler until torch's timeout.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping

from mnist_dist.distributed.topology import Topology
from mnist_dist.distributed.watchdog.comm_errors import format_ranks
from mnist_dist.utils.error_file import write_error_file
from mnist_dist.utils.errors import EXIT_STOPPED
from mnist_dist.utils.signals import ASKS_TO_STOP

NOTICE_SECONDS = 10.0
"""Wait without a word."""
SIGNALS = (*ASKS_TO_STOP, "SIGHUP")


@contextlib.contextmanager
def announce_joining(topology: Topology, timeout: float, find_missing: Callable[[], list[int]]) -> Iterator[None]:
    """Wrap the rendezvous: write who has not come after NOTICE_SECONDS; end the process on a signal.

    If no launcher started this process, it says at once that it will wait, and for which variables.

    Args:
        timeout: run.timeout in seconds.
        find_missing: the ranks that have not joined yet; empty if unknown.
    """
    if topology.world_size == 1:
        yield
        return
    if stale := describe_stale_variables(topology):
        write_line(f"warning: {stale}")

    def give_notice() -> None:
        missing = find_missing()
        others = format_ranks(missing) if missing else "the other ranks"
        write_line(
            f"warning: rank {topology.rank} of {topology.world_size} is waiting for {others} (rendezvous at "
            f"{topology.address}); it gives up after run.timeout={timeout:g} s, or on Ctrl-C"
        )

    notice = threading.Timer(NOTICE_SECONDS, give_notice)
    notice.daemon = True
    notice.start()
    try:
        with end_on_signals(topology):
            yield
    finally:
        notice.cancel()
        notice.join()


def describe_stale_variables(topology: Topology, environment: Mapping[str, str] = os.environ) -> str:
    """That this rank was made by variables alone, which may be left over in a shell; empty if a launcher set them."""
    if topology.launcher_pid or topology.cluster or "TORCHELASTIC_USE_AGENT_STORE" in environment:
        return ""
    names = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR") if name in environment]
    values = ", ".join(f"{name}={environment[name]}" for name in names)
    return (
        f"{values} (environment): no launcher started this process, so it waits for {topology.world_size - 1} more; "
        f"to train alone: unset {' '.join(names)}"
    )


@contextlib.contextmanager
def end_on_signals(topology: Topology) -> Iterator[None]:
    """Within the block, a signal that asks to stop ends the process with exit code 3. Ignored signals stay ignored.

    Python writes the number of a signal to a socket at once, and a thread reads it. Off the main thread, where Python
    allows no handlers, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        while read := reader.recv(1):
            if read[0] in before:
                end_process(topology, signal.Signals(read[0]).name)

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in before:
        signal.signal(number, lambda number, frame: None)  # the thread ends the process
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        writer.close()
        watcher.join()
        reader.close()


def end_process(topology: Topology, name: str) -> None:
    """End this process for a signal. The first process of a machine says so, or each one that has no launcher."""
    told = f"by {name}, before all ranks had joined: nothing was trained"
    write_error_file(f"stopped: {told}")
    if topology.is_local_main or not (topology.launcher_pid or topology.cluster):
        write_line(f"mnist_dist: stopped: {told}")
    os._exit(EXIT_STOPPED)


def write_line(text: str) -> None:
    """Write a line to standard error, also while the main thread cannot run."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
