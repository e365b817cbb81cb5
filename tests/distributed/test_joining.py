"""A rank that waits for others to join says for whom, and ends at once on a signal."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from harness import try_ranks

from mnist_dist.config.loader import load
from mnist_dist.distributed.cluster_environment import ClusterEnvironment
from mnist_dist.distributed.runtime import start_runtime
from mnist_dist.distributed.topology import Topology, read_topology
from mnist_dist.distributed.watchdog import joining
from mnist_dist.distributed.watchdog.joining import describe_stale_variables, end_on_signals
from mnist_dist.utils.errors import EXIT_STOPPED

SHELL = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}


def wait_until_signalled(number: int, file: str) -> None:
    """Joins a run whose other ranks do not come. The signal comes from a thread, once the notice is written."""
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    joining.NOTICE_SECONDS = 0.05
    write_line = joining.write_line

    def write_and_signal(text: str) -> None:
        write_line(text)
        if "is waiting for" in text:
            os.kill(os.getpid(), number)

    joining.write_line = write_and_signal
    with start_runtime(load(["--run.device=cpu", "--run.timeout=50"]).config, read_topology()):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_has_not_come_is_named_and_a_signal_ends_the_wait_at_once(number: int, tmp_path: Path) -> None:
    file = tmp_path / "stderr"
    (outcome, *_) = try_ranks(3, wait_until_signalled, int(number), str(file), absent=[1, 2], timeout=40)
    assert outcome.exit_code == EXIT_STOPPED, outcome.trace
    waiting, stopped = [line for line in file.read_text().splitlines() if line.startswith(("warning", "mnist_dist"))]
    assert waiting.startswith("warning: rank 0 of 3 is waiting for ranks 1, 2 (rendezvous at 127.0.0.1:")
    name = signal.Signals(number).name
    assert stopped == f"mnist_dist: stopped: by {name}, before all ranks had joined: nothing was trained"


def test_variables_that_no_launcher_set_are_named_at_once() -> None:
    told = describe_stale_variables(read_topology(SHELL), SHELL)
    assert told.startswith(
        "RANK=0, WORLD_SIZE=2, MASTER_ADDR=localhost (environment): no launcher started this process"
    )
    assert told.endswith("to train alone: unset RANK WORLD_SIZE MASTER_ADDR")


def test_a_launchers_variables_are_not_called_stale() -> None:
    cluster = ClusterEnvironment("srun", 0, 2, 0, 2, "localhost", 1, "SLURM_PROCID", "SLURM_NTASKS")
    assert describe_stale_variables(Topology(0, 2, launcher_pid=7), SHELL) == ""
    assert describe_stale_variables(Topology(0, 2, cluster=cluster), SHELL) == ""


def test_ignored_signals_and_handlers_are_as_before() -> None:
    """nohup ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        handler = signal.getsignal(signal.SIGTERM)
        with end_on_signals(Topology(0, 2)):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != handler
        assert signal.getsignal(signal.SIGTERM) == handler
        assert signal.set_wakeup_fd(-1) == -1
        assert "signals" not in {thread.name for thread in threading.enumerate()}
    finally:
        signal.signal(signal.SIGHUP, before)
